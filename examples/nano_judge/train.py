"""Trains nano-judge on pictures of all collections and on scenes made on the fly; resumes where it stopped.

    python examples/nano_judge/train.py --pictures examples/emoji/out --work work/nano-judge --steps 4000
    python examples/nano_judge/train.py ... --minutes 14 --device cuda --batch 256 --workers 12

A step shows single pictures and scenes, and takes the sum of
  classes    each shown label against all labels that a picture does not show, as points that texts are drawn to
  objects    the same with the texts of the batch, and each text against the pictures that do not show it (CLIP)
  presence   "is there a ...?" for every picture and a sample of the batch's labels
  questions  count, colour, position and their yes/no forms: cross-entropy over the choices (hard negatives)
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from batches import SEED, SINGLES, Batch, Batches
from open_clip.model import CLIP
from pictures import (
    Pictures,
    check_held_out,
    load_pictures,
    move,
    restyle,
    scene_nouns,
    training_folders,
    weather,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from promptcdm.nano_judge import NanoConfig, Vocabulary, encode_regions, read, save_nano, score, texts_of
from promptcdm.question_words import NUMBERS, PLAIN_COLORS
from promptcdm.statements import plain
from promptcdm.tensorfile import read_tensors, write_json

sys.path.append(str(Path(__file__).parents[1] / "nano"))  # plain files, not a package
from optimizer import MatrixOptimizer
from scenes import Sprites
from schedule import Schedule, add_options

EMBED_DIM = 512
VISION = {"layers": [2, 3, 2, 1], "width": 40, "head_width": 64, "image_size": 128}
TEXT = {"width": 192, "heads": 6, "layers": 2, "mlp_ratio": 2.0}
CONTEXT = 10
SHORT = 4  # tokens; shorter texts are encoded apart, without the padding
WEIGHTS = {"count": 1.0, "color": 0.5, "position": 1.0, "yes or no": 1.0}
MORE_WORDS = ("not", "left", "right", "above", "below", "next", "front", "behind", "near", "top")
NOT_MATRICES = ("embedding", "embedding.weight", "anchors")
WEIGHT_DECAY = 0.05
EMA = 0.999


def make_config(labels: Sequence[str]) -> NanoConfig:
    """The model's settings, its vocabulary the words of the labels and of the questions."""
    known = {word for label in labels for word in label.split()}
    words = sorted({*known, *MORE_WORDS, *NUMBERS, *PLAIN_COLORS})
    return NanoConfig(EMBED_DIM, VISION, TEXT, Vocabulary(tuple(words), CONTEXT))


class Learner(nn.Module):
    """The model, and a point for each label that pictures are drawn to, and texts too: not kept."""

    def __init__(self, config: NanoConfig, anchors: int) -> None:
        super().__init__()
        self.clip = config.build()
        # With open_clip's small positions the pool starts as an average and learns left from right late.
        nn.init.normal_(self.clip.visual.attnpool.positional_embedding, std=1.0)
        self.anchors = nn.Parameter(torch.randn(anchors, EMBED_DIM) * EMBED_DIM**-0.5)


class Trainer:
    """The model, its average, and what one step needs; its whole state is saved and read back."""

    def __init__(self, pictures: Pictures, arguments: argparse.Namespace) -> None:
        torch.manual_seed(SEED)
        self.device, self.rate = arguments.device, arguments.rate
        self.pixels = pictures.pixels.to(self.device)
        self.sided = pictures.sided.to(self.device)
        self.labels = sorted({*pictures.labels, *(plain(noun) for noun in scene_nouns())})
        self.config = make_config(self.labels)
        self.learner = Learner(self.config, len(self.labels)).to(self.device)
        self.model = self.learner.clip
        self.average = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.optimizer = MatrixOptimizer(self.learner, self.rate, WEIGHT_DECAY, NOT_MATRICES)
        self.schedule = Schedule(arguments.steps, arguments.minutes, arguments.cooldown)
        self.random = torch.Generator(self.device)
        self.step = 0

    def images(self, batch: Batch) -> Tensor:
        """The batch's pictures (B, 3, image_size, image_size), moved, restyled and weathered."""
        self.random.manual_seed(SEED * 1_000_003 + self.step)
        singles = move(self.pixels[batch.singles], self.sided[batch.singles], self.random)
        scenes = batch.scenes.permute(0, 3, 1, 2).float() / 255
        images = weather(restyle(torch.cat([singles, scenes]), batch.coloured, self.random), self.random)
        size = self.config.image_size
        if images.shape[-1] != size:
            images = F.interpolate(images, (size, size), mode="bicubic", align_corners=False).clamp(-1, 1)
        return images.contiguous(memory_format=torch.channels_last)

    def run_step(self, batch: Batch) -> dict[str, Tensor]:
        """Take one optimizer step; return its losses and accuracies."""
        batch = _to(batch, self.device)
        losses, shares = self._losses(self.images(batch), batch)
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(self.learner.parameters(), 1.0)
        self.optimizer.step(self.rate * self.schedule.rate(self.step))
        with torch.no_grad():
            self.model.logit_scale.clamp_(0.0, math.log(100))
            keep = min(EMA, (1 + self.step) / (10 + self.step))
            state = self.model.state_dict()
            floats = [name for name, tensor in state.items() if tensor.is_floating_point()]
            torch._foreach_lerp_([self.average[n] for n in floats], [state[n] for n in floats], 1 - keep)
        self.step += 1
        return {name: value.detach() for name, value in {**losses, **shares}.items()}

    def _losses(self, images: Tensor, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        readings = [read(text) for text in batch.statements]
        texts = texts_of(readings)
        with torch.autocast(images.device.type, torch.bfloat16):
            pictured = encode_regions(self.model, images)
            worded = F.normalize(encode_texts(self.model, batch.tokens).float(), dim=-1)
        similar = pictured @ worded.T
        scores = self.model.logit_scale.exp() * score(similar, texts, readings)
        own, absent, doubted = batch.own, batch.absent, batch.doubted
        labels = own.shape[1]
        # The labels are the first statements, and each is its own first text.
        losses = {
            "objects": _objects(scores[:, :labels], own, absent),
            "classes": self._classes(pictured, batch, worded[:labels]),
            "presence": _presence(
                scores[:, doubted] - scores[:, batch.denied], own[:, doubted], absent[:, doubted]
            ),
        }
        shares = {}
        for kind, (rows, columns, right) in batch.groups.items():
            logits = scores[rows, columns]
            losses[kind] = WEIGHTS[kind] * F.cross_entropy(logits, right)
            shares[f"{kind} right"] = (logits.argmax(1) == right).float().mean()
        best = scores[:, :labels].masked_fill(~(own | absent), -torch.inf).argmax(1)
        alone = len(images) * SINGLES // 100
        found = own[torch.arange(len(own), device=own.device), best].float()
        shares |= {"pictures right": found[:alone].mean(), "scenes right": found[alone:].mean()}
        return losses, shares

    def _classes(self, pictured: Tensor, batch: Batch, worded: Tensor) -> Tensor:
        """Pictures against the anchors of all labels, and the batch's labels against the same anchors.

        A label that shares a word with what a picture shows is no wrong answer to it.
        """
        anchors = F.normalize(self.learner.anchors, dim=-1)
        scale = self.model.logit_scale.exp()
        similar = pictured @ anchors.T
        # A picture of one thing is seen whole and by its best region, a scene by the best region of
        # each thing.
        anywhere, whole = scale * similar.amax(1), scale * similar[:, 0]
        images, places = batch.shown
        alone = images < len(pictured) * SINGLES // 100
        losses = []
        for scores, kept in ((anywhere, torch.ones_like(alone)), (whole, alone)):
            rows, columns = images[kept], places[kept]
            wrong = scores.masked_fill(batch.near, -torch.inf).logsumexp(1)[rows]
            losses.append(F.softplus(wrong - scores[rows, columns]).mean())
        said = F.cross_entropy(scale * worded @ anchors.T, batch.said)
        return 0.5 * (losses[0] + losses[1]) + 0.3 * said

    def save(self, work: Path) -> None:
        """Write the checkpoint (safetensors and JSON) and the averaged model."""
        parts = {
            "learner": self.learner.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state(),
        }
        tensors = {
            f"{part}/{name}": t.contiguous() for part, named in parts.items() for name, t in named.items()
        }
        kept = {"step": str(self.step), "seconds": str(self.schedule.seconds)}
        save_file(tensors, work / "checkpoint.partial", kept)
        (work / "checkpoint.partial").replace(work / "checkpoint.safetensors")
        write_json(work / "checkpoint.json", kept)
        averaged = self.config.build()
        averaged.load_state_dict(self.average)
        save_nano(work / "model", averaged, self.config)

    def resume(self, work: Path) -> None:
        """Go on from the checkpoint, where there is one."""
        if not (work / "checkpoint.json").exists():
            return
        kept = json.loads((work / "checkpoint.json").read_text())
        self.step, self.schedule.before = int(kept["step"]), float(kept["seconds"])
        tensors = load_file(work / "checkpoint.safetensors", device=str(self.device))
        self.learner.load_state_dict(_below(tensors, "learner/"))
        self.average = _below(tensors, "average/")
        self.optimizer.load(_below(tensors, "optimizer/"))

    def start(self, folder: Path) -> None:
        """Begin with the weights of a model folder, and the anchors where its texts are."""
        tensors, _ = read_tensors(folder / "model.safetensors")
        self.model.load_state_dict(
            {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
        )
        self.average = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        with torch.no_grad():
            worded = encode_texts(self.model, self.config.vocabulary.encode(self.labels).to(self.device))
            self.learner.anchors.copy_(F.normalize(worded, dim=-1))


def encode_texts(model: CLIP, tokens: Tensor) -> Tensor:
    """What `model.encode_text` gives, without the cost of padding: the end token sees nothing behind it."""
    short = (tokens != 0).sum(1) <= SHORT
    found = torch.zeros(len(tokens), EMBED_DIM, device=tokens.device)
    for chosen, length in ((short, SHORT), (~short, CONTEXT)):
        part = tokens[chosen, :length]
        if len(part):
            states = model.token_embedding(part) + model.positional_embedding[:length]
            states = model.ln_final(model.transformer(states, attn_mask=model.attn_mask[:length, :length]))
            ends = states[torch.arange(len(part), device=part.device), part.argmax(1)]
            found = found.index_put((chosen.nonzero()[:, 0],), (ends @ model.text_projection).float())
    return found


def _objects(scores: Tensor, own: Tensor, absent: Tensor) -> Tensor:
    """Each shown label against its picture's absent ones, each picture against those without the label."""
    losses = []
    for axis in (1, 0):
        others = scores.masked_fill(~absent, -torch.inf).logsumexp(axis, keepdim=True)
        losses.append(F.softplus(others - scores)[own].mean())
    return (losses[0] + 0.5 * losses[1]) / 1.5


def _presence(difference: Tensor, own: Tensor, absent: Tensor) -> Tensor:
    """Yes against no; what is shown and what is not count alike."""
    yes = F.softplus(-difference)[own].sum() / own.sum().clamp_min(1)
    no = F.softplus(difference)[absent].sum() / absent.sum().clamp_min(1)
    return 0.5 * (yes + no)


def _to(batch: Batch, device: str) -> Batch:
    """The batch with its tensors on the device."""
    moved = {}
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            moved[field.name] = value.to(device, non_blocking=True)
    groups = {kind: tuple(t.to(device) for t in group) for kind, group in batch.groups.items()}
    return dataclasses.replace(batch, groups=groups, **moved)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def main() -> None:
    """Train to the end, or on from the last checkpoint."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pictures", type=Path, required=True, help="folder that examples/emoji/build.py made"
    )
    parser.add_argument("--work", type=Path, required=True, help="checkpoint, log and model")
    parser.add_argument("--start", type=Path, help="model folder whose weights a new run begins with")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches")
    parser.add_argument("--save-every", type=int, default=250, help="steps")
    add_options(parser, steps=4000, batch=128, cooldown=0.6)
    arguments = parser.parse_args()
    if arguments.device != "cpu":
        torch.set_float32_matmul_precision("high")
    folders = training_folders(arguments.pictures)
    check_held_out(folders)
    pictures = load_pictures(folders)
    trainer = Trainer(pictures, arguments)
    if arguments.start is not None:
        trainer.start(arguments.start)
    trainer.resume(arguments.work)
    arguments.work.mkdir(parents=True, exist_ok=True)
    print(
        f"{len(pictures)} pictures of {len(folders)} folders, {len(set(pictures.labels))} labels, "
        f"from step {trainer.step}"
    )
    batches = Batches(
        pictures,
        Sprites.open(*folders),
        trainer.config.vocabulary,
        trainer.labels,
        arguments.batch,
        1_000_000,
    )
    rows = DataLoader(
        batches,
        batch_size=None,
        sampler=range(trainer.step, len(batches)),
        num_workers=arguments.workers,
        persistent_workers=False,
    )
    train(trainer, rows, arguments)


def train(trainer: Trainer, batches: DataLoader[Batch], arguments: argparse.Namespace) -> None:
    """Step through the batches until the schedule ends, with a log, and checkpoints."""
    sums: dict[str, list[Tensor]] = {}
    first, before = trainer.step, trainer.schedule.seconds
    with (arguments.work / "log.jsonl").open("a", encoding="utf-8") as log:
        for batch in batches:
            if not trainer.schedule.share_left(trainer.step):
                break
            for name, value in trainer.run_step(batch).items():
                sums.setdefault(name, []).append(value)
            if trainer.step % 50 == 0:
                means = {name: round(torch.stack(values).mean().item(), 4) for name, values in sums.items()}
                if not math.isfinite(sum(means.values())):
                    raise SystemExit(f"a loss is not finite by step {trainer.step}: {means}; lower --rate")
                speed = (trainer.step - first) * arguments.batch / (trainer.schedule.seconds - before)
                row = {"step": trainer.step, **means, "pictures_per_second": round(speed, 1)}
                log.write(json.dumps(row) + "\n")
                log.flush()
                print(json.dumps(row), flush=True)
                sums.clear()
            if trainer.step % arguments.save_every == 0:
                trainer.save(arguments.work)
    trainer.save(arguments.work)


if __name__ == "__main__":
    main()
