"""Trains nano-judge on pictures of all collections and on scenes made on the fly; resumes where it stopped.

    python examples/nano_judge/train.py --pictures examples/emoji/out --work work/nano-judge --steps 4000

A step shows single pictures and scenes, and takes the sum of
  classes    each shown label against all labels that a picture does not show, as points that texts are drawn to
  objects    the same with the texts of the batch, and each text against the pictures that do not show it (CLIP)
  presence   "is there a ...?" for every picture and a sample of the batch's labels
  questions  count, colour, position and their yes/no forms: cross-entropy over the choices (hard negatives)
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from pictures import Pictures, check_held_out, load_pictures, move, scene_nouns, training_folders, weather
from tasks import Asked, ask_scene
from torch import Tensor

from promptcdm.nano_judge import NanoConfig, Vocabulary, encode_regions, read, save_nano, score, texts_of
from promptcdm.question_words import NUMBERS, PLAIN_COLORS
from promptcdm.statements import plain
from promptcdm.tensorfile import read_tensors, write_json, write_tensors

from scenes import Sprites, make_scene  # isort: skip

SEED = 17
EMBED_DIM = 512
VISION = {"layers": [1, 2, 2, 1], "width": 32, "head_width": 64, "image_size": 64}
TEXT = {"width": 192, "heads": 6, "layers": 2, "mlp_ratio": 2.0}
CONTEXT = 10
SINGLES = 60  # of 100 pictures of a batch
SCENES = {"pair": 2, "list": 3, "count": 6, "mixed count": 3, "colour": 2, "colour pair": 4}  # shares
SHORT = 4  # tokens; shorter texts are encoded apart, without the padding
WEIGHTS = {"count": 1.0, "color": 0.5, "position": 1.0, "yes or no": 1.0}
MORE_WORDS = ("not", "left", "right", "above", "below", "next", "front", "behind", "near", "top")


def make_config(labels: Sequence[str]) -> NanoConfig:
    """The model's settings, its vocabulary the words of the labels and of the questions."""
    counted = Counter(
        word for label in {*labels, *(plain(noun) for noun in scene_nouns())} for word in label.split()
    )
    words = sorted({*counted, *MORE_WORDS, *NUMBERS, *PLAIN_COLORS})
    return NanoConfig(EMBED_DIM, VISION, TEXT, Vocabulary(tuple(words), CONTEXT))


class Trainer:
    """The model, its average, and what one step needs; its whole state is saved and read back."""

    def __init__(self, pictures: Pictures, sprites: Sprites, arguments: argparse.Namespace) -> None:
        torch.manual_seed(SEED)
        self.pictures, self.sprites = pictures, sprites
        self.steps, self.batch, self.rate = arguments.steps, arguments.batch, arguments.rate
        self.config = make_config(pictures.labels)
        self.model = self.config.build().to(memory_format=torch.channels_last)
        # With open_clip's small positions the pool starts as an average and learns left from right late.
        torch.nn.init.normal_(self.model.visual.attnpool.positional_embedding, std=1.0)
        self.average = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        decayed = [p for _, p in named if p.ndim >= 2]
        plain_ones = [p for _, p in named if p.ndim < 2]
        # A point for each label that pictures are drawn to, and texts too: a classifier's weights, not kept.
        self.labels = sorted({*pictures.labels, *(plain(noun) for noun in scene_nouns())})
        self.anchors = torch.nn.Parameter(torch.randn(len(self.labels), EMBED_DIM) * EMBED_DIM**-0.5)
        self.anchor_places = {label: place for place, label in enumerate(self.labels)}
        self.anchor_words = self._words(self.labels)
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.05}, {"params": [*plain_ones, self.anchors],
            "weight_decay": 0.0}], lr=self.rate, betas=(0.9, 0.98),
        )  # fmt: skip
        self.ordered = [*decayed, *plain_ones, self.anchors]
        self.step = 0

    def images(self, rng: random.Random, noise: torch.Generator) -> tuple[Tensor, Asked]:
        """One batch (B, 3, 64, 64) and what is asked about it: a function of the step alone."""
        asked = Asked()
        alone = self.batch * SINGLES // 100
        chosen = torch.randint(len(self.pictures), (alone,), generator=noise)
        singles = move(self.pictures.pixels[chosen], self.pictures.sided[chosen], noise)
        for image, index in enumerate(chosen.tolist()):
            asked.present[image] = (self.pictures.labels[index],)
        drawn = []
        for image in range(alone, self.batch):
            (kind,) = rng.choices(list(SCENES), list(SCENES.values()))
            scene = make_scene(self.sprites, rng.getrandbits(48), kind)
            drawn.append(
                torch.frombuffer(bytearray(scene.picture.tobytes()), dtype=torch.uint8).view(64, 64, 3)
            )
            ask_scene(asked, image, scene, rng)
        scenes = torch.stack(drawn).permute(0, 3, 1, 2).float() / 255
        return weather(torch.cat([singles, scenes]), noise), asked

    def run_step(self) -> dict[str, float]:
        """Take one optimizer step; return its losses and accuracies."""
        rng = random.Random(f"{SEED} {self.step}")
        noise = torch.Generator().manual_seed(SEED * 1_000_003 + self.step)
        images, asked = self.images(rng, noise)
        losses, shares = self._losses(images.contiguous(memory_format=torch.channels_last), asked, rng)
        loss = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(loss):
            raise SystemExit(f"the loss is {float(loss)} at step {self.step}; lower --rate")
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * _schedule(self.step, self.steps)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0.0, math.log(100))
            keep = min(0.998, (1 + self.step) / (10 + self.step))
            for name, tensor in self.model.state_dict().items():
                if tensor.is_floating_point():
                    self.average[name].lerp_(tensor, 1 - keep)
                else:
                    self.average[name].copy_(tensor)
        self.step += 1
        return {**{name: value.item() for name, value in losses.items()}, **shares}

    def _losses(
        self, images: Tensor, asked: Asked, rng: random.Random
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        labels = list(dict.fromkeys(label for shown in asked.present.values() for label in shown))
        doubted = rng.sample(range(len(labels)), min(40, len(labels)))
        said = [*labels, *(f"not {labels[index]}" for index in doubted)]
        said += [text for group in asked.groups for text in group.statements]
        place = {text: index for index, text in enumerate(dict.fromkeys(said))}
        readings = [read(text) for text in place]
        texts = texts_of(readings)
        with torch.autocast("cpu", torch.bfloat16):
            pictured = encode_regions(self.model, images)
            worded = F.normalize(
                encode_texts(self.model, self.config.vocabulary.encode(texts)).float(), dim=-1
            )
        similar = pictured @ worded.T
        scores = self.model.logit_scale.exp() * score(similar, texts, readings)
        own, absent = _truth(asked, labels)
        denied = scores[:, [place[f"not {labels[index]}"] for index in doubted]]
        losses = {
            "objects": _objects(scores[:, : len(labels)], own, absent),
            "classes": self._classes(pictured, asked, labels, worded[: len(labels)]),
            "presence": _presence(scores[:, doubted] - denied, own[:, doubted], absent[:, doubted]),
        }
        shares: dict[str, float] = {}
        for kind, weight in WEIGHTS.items():
            groups = [group for group in asked.groups if group.kind == kind]
            if groups:
                rows = torch.tensor([[group.image] for group in groups])
                columns = torch.tensor([[place[text] for text in group.statements] for group in groups])
                right = torch.tensor([group.right for group in groups])
                logits = scores[rows, columns]
                losses[kind] = weight * F.cross_entropy(logits, right)
                shares[f"{kind} right"] = (logits.argmax(1) == right).float().mean().item()
        best = scores[:, : len(labels)].masked_fill(~(own | absent), -torch.inf).argmax(1)
        shares["objects right"] = own[torch.arange(len(own)), best].float().mean().item()
        return losses, shares

    def _classes(self, pictured: Tensor, asked: Asked, labels: Sequence[str], worded: Tensor) -> Tensor:
        """Pictures against the anchors of all labels, and the batch's labels against the same anchors.

        A label that shares a word with what a picture shows is no wrong answer to it.
        """
        anchors = F.normalize(self.anchors, dim=-1)
        scale = self.model.logit_scale.exp()
        with torch.autocast("cpu", torch.bfloat16):
            similar = pictured @ anchors.T
        # A picture of one thing is seen whole and by its best region, a scene by the best region of
        # each thing.
        anywhere, whole = scale * similar.amax(1).float(), scale * similar[:, 0].float()
        images, places = [], []
        for image, shown in asked.present.items():
            images += [image] * len(shown)
            places += [self.anchor_places[label] for label in shown]
        near = self.anchor_words[places] @ self.anchor_words.T > 0
        near = torch.zeros(len(pictured), len(anchors)).index_add_(0, torch.tensor(images), near.float()) > 0
        losses = []
        for scores, kept in ((anywhere, range(len(images))), (whole, range(self.batch * SINGLES // 100))):
            rows, columns = torch.tensor(images)[list(kept)], torch.tensor(places)[list(kept)]
            wrong = scores.masked_fill(near, -torch.inf).logsumexp(1)[rows]
            losses.append(F.softplus(wrong - scores[rows, columns]).mean())
        own = torch.tensor([self.anchor_places[label] for label in labels])
        said = F.cross_entropy(scale * worded @ anchors.T, own)
        return 0.5 * (losses[0] + losses[1]) + 0.3 * said

    def _words(self, texts: Sequence[str]) -> Tensor:
        """(texts, words of the vocabulary): 1 where a text has a word."""
        places = {word: place for place, word in enumerate(self.config.vocabulary.words)}
        found = torch.zeros(len(texts), len(places))
        for row, text in enumerate(texts):
            found[row, [places[word] for word in text.split()]] = 1
        return found

    def save(self, work: Path) -> None:
        """Write the checkpoint (safetensors and JSON) and the averaged model."""
        work.mkdir(parents=True, exist_ok=True)
        tensors = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        tensors |= {f"average.{name}": t for name, t in self.average.items()}
        for index, parameter in enumerate(self.ordered):
            state = self.optimizer.state[parameter]
            tensors[f"first.{index}"], tensors[f"second.{index}"] = state["exp_avg"], state["exp_avg_sq"]
        tensors["anchors"] = self.anchors.detach()
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        write_tensors(work / "checkpoint.safetensors", contiguous, {"step": str(self.step)})
        averaged = self.config.build()
        averaged.load_state_dict(self.average)
        save_nano(work / "model", averaged, self.config)

    def resume(self, work: Path) -> None:
        """Go on from the checkpoint, where there is one."""
        path = work / "checkpoint.safetensors"
        if not path.exists():
            return
        tensors, metadata = read_tensors(path)
        self.step = int(metadata["step"])
        self.model.load_state_dict(_below(tensors, "model."))
        self.average = _below(tensors, "average.")
        for index, parameter in enumerate(self.ordered):
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(self.step)),
                "exp_avg": tensors[f"first.{index}"].clone(),
                "exp_avg_sq": tensors[f"second.{index}"].clone(),
            }
        with torch.no_grad():
            self.anchors.copy_(tensors["anchors"])

    def start(self, folder: Path) -> None:
        """Begin with the weights of a model folder, and the anchors where its texts are."""
        tensors, _ = read_tensors(folder / "model.safetensors")
        self.model.load_state_dict(
            {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
        )
        self.average = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        with torch.no_grad():
            worded = encode_texts(self.model, self.config.vocabulary.encode(self.labels))
            self.anchors.copy_(F.normalize(worded, dim=-1))


def encode_texts(model: CLIP, tokens: Tensor) -> Tensor:
    """What `model.encode_text` gives, without the cost of padding: the end token sees nothing behind it."""
    short = (tokens != 0).sum(1) <= SHORT
    found = torch.zeros(len(tokens), EMBED_DIM)
    for chosen, length in ((short, SHORT), (~short, CONTEXT)):
        part = tokens[chosen, :length]
        if len(part):
            states = model.token_embedding(part) + model.positional_embedding[:length]
            states = model.ln_final(model.transformer(states, attn_mask=model.attn_mask[:length, :length]))
            ends = states[torch.arange(len(part)), part.argmax(1)]
            found = found.index_put((chosen.nonzero()[:, 0],), (ends @ model.text_projection).float())
    return found


def _truth(asked: Asked, labels: Sequence[str]) -> tuple[Tensor, Tensor]:
    """(images, labels) shown, and surely absent: a label that shares a word with a shown one is neither."""
    words = {word: index for index, word in enumerate(sorted({w for label in labels for w in label.split()}))}
    has = torch.zeros(len(labels), len(words))
    for row, label in enumerate(labels):
        has[row, [words[word] for word in label.split()]] = 1
    place = {label: index for index, label in enumerate(labels)}
    own = torch.zeros(len(asked.present), len(labels))
    for image, shown in asked.present.items():
        own[image, [place[label] for label in shown]] = 1
    return own.bool(), (own @ has @ has.T) == 0


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


def _schedule(step: int, steps: int) -> float:
    """Warm-up over 3 %, then a cosine to nearly 0."""
    warm = max(1, steps * 3 // 100)
    if step < warm:
        return (step + 1) / warm
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / (steps - warm))))


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
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=128, help="pictures a step")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--save-every", type=int, default=250)
    arguments = parser.parse_args()
    folders = training_folders(arguments.pictures)
    check_held_out(folders)
    pictures = load_pictures(folders)
    trainer = Trainer(pictures, Sprites.open(*folders), arguments)
    if arguments.start is not None:
        trainer.start(arguments.start)
    trainer.resume(arguments.work)
    print(
        f"{len(pictures)} pictures of {len(folders)} folders, {len(set(pictures.labels))} labels, "
        f"from step {trainer.step}"
    )
    arguments.work.mkdir(parents=True, exist_ok=True)
    write_json(
        arguments.work / "settings.json",
        {"steps": arguments.steps, "batch": arguments.batch, "rate": arguments.rate, "seed": SEED},
    )
    sums: Counter[str] = Counter()
    started, seen = time.monotonic(), 0
    with (arguments.work / "log.jsonl").open("a", encoding="utf-8") as log:
        while trainer.step < arguments.steps:
            for name, value in trainer.run_step().items():
                sums[name] += value
                sums[f"{name} #"] += 1
            seen += arguments.batch
            if trainer.step % 50 == 0:
                row = {
                    name: round(sums[name] / sums[f"{name} #"], 4) for name in sums if not name.endswith("#")
                }
                row = {
                    "step": trainer.step,
                    **row,
                    "pictures_per_second": round(seen / (time.monotonic() - started), 1),
                }
                log.write(json.dumps(row) + "\n")
                log.flush()
                print(json.dumps(row), flush=True)
                sums.clear()
            if trainer.step % arguments.save_every == 0 or trainer.step == arguments.steps:
                trainer.save(arguments.work)


if __name__ == "__main__":
    main()
