"""Trains `sealed-judge` on drawings of all collections and on scenes made on the fly; resumes where it stopped.

    python examples/sealed_judge/train.py --pictures examples/emoji/out --work work/sealed-judge --minutes 90

The finder learns boxes from nothing; the namer learns concepts and colours from crops, first small ones and then larger
ones, and begins with the weights of `concept-tower`. A name of several concepts (a "heart") is right by their sum.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from batches import Batch, Batches, heat_loss, heat_of, styled
from safetensors.torch import load_file, save_file
from split import EMOJI, Drawing, Drawings, drawings, read_drawings, split, sprites
from torch import Tensor, nn

from pictures import check_held_out, training_folders  # isort: skip

from promptcdm.question_words import PLAIN_COLORS
from promptcdm.sealed_judge import SealedConfig, save_sealed
from promptcdm.sealed_names import Names
from promptcdm.sealed_network import CROP, Finder, Namer, crops, ink_boxes
from promptcdm.shipped import shipped
from promptcdm.statements import plain
from promptcdm.tensorfile import read_tensors, write_json

import sys  # isort: skip

sys.path.append(str(Path(__file__).parents[1] / "nano"))
from schedule import Schedule, add_options

SEED = 29
RATE = 3e-3
TRUNK = 0.4  # share of the rate for the trunk, which has learned already
WEIGHT_DECAY = 0.02
SMALL, SMALL_SHARE = 32, 0.5  # pixels a side of a crop in the first part of the run, and that part
FINDER_EVERY = 4  # steps
SMOOTHING = 0.05
EMA = 0.998


def concept_names(every: list[Drawing]) -> dict[str, list[str]]:
    """Concept -> its names: labels, and the nouns of scenes."""
    names: dict[str, list[str]] = {}
    for drawing in every:
        names.setdefault(drawing.concept, []).append(drawing.label)
    for table in ("countable", "recolourable"):
        with (EMOJI / f"{table}.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["concept"] in names:
                    names[row["concept"]].append(plain(row["noun"]))
    return {concept: list(dict.fromkeys(each)) for concept, each in sorted(names.items())}


class Trainer:
    """The two networks, their average, and what one step needs; its whole state is saved and read back."""

    def __init__(self, config: SealedConfig, arguments: argparse.Namespace) -> None:
        torch.manual_seed(SEED)
        self.config, self.rate = config, arguments.rate
        self.names = Names(config.names)
        self.model = config.build().to(memory_format=torch.channels_last)
        self.finder: Finder = self.model["finder"]  # type: ignore[assignment]
        self.namer: Namer = self.model["namer"]  # type: ignore[assignment]
        self.average = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        named = dict(self.model.named_parameters())
        trunk = [p for name, p in named.items() if ".trunk." in name]
        others = [p for name, p in named.items() if ".trunk." not in name]
        self.optimizer = torch.optim.AdamW(
            [{"params": trunk, "share": TRUNK}, {"params": others, "share": 1.0}],
            betas=(0.9, 0.98),
            weight_decay=WEIGHT_DECAY,
            fused=True,
        )
        self.schedule = Schedule(arguments.steps, arguments.minutes, arguments.cooldown)
        self.step = 0

    def run_step(self, batch: Batch) -> dict[str, Tensor]:
        """Take one optimizer step; return its losses and accuracies."""
        small = self.schedule.share_left(self.step) > 1 - SMALL_SHARE
        noise = torch.Generator().manual_seed(SEED * 2_000_003 + self.step)
        seen = crops(batch.pictures[batch.image], batch.box, SMALL if small else CROP)
        seen = styled(seen, batch.coloured[batch.image], noise)
        concepts, colors = self.namer(seen.contiguous(memory_format=torch.channels_last))
        losses = {"concepts": named_loss(concepts, batch.concepts)}
        known = batch.colors >= 0
        losses["colors"] = 0.5 * F.cross_entropy(colors[known], batch.colors[known])
        best = concepts.argmax(1, keepdim=True)
        shares = {
            "concepts right": batch.concepts.gather(1, best).float().mean(),
            "colors right": (colors[known].argmax(1) == batch.colors[known]).float().mean(),
        }
        if self.step % FINDER_EVERY == 0:
            heat, cells, sizes = heat_of(batch.boxes)
            pictures = styled(batch.pictures, batch.coloured, noise)
            found = self.finder(pictures.contiguous(memory_format=torch.channels_last))
            losses["heat"] = heat_loss(found.heat, heat)
            told = found.size[cells[:, 0], :, cells[:, 1], cells[:, 2]]
            losses["size"] = 5 * F.l1_loss(told, sizes)
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 2.0)
        for group in self.optimizer.param_groups:
            group["lr"] = group["share"] * self.rate * self.schedule.rate(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        keep = min(EMA, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                if tensor.is_floating_point():
                    self.average[name].lerp_(tensor, 1 - keep)
        self.step += 1
        return {name: value.detach() for name, value in {**losses, **shares}.items()}

    def averaged(self) -> nn.ModuleDict:
        """The model with averaged weights, for use."""
        model = self.config.build()
        model.load_state_dict(self.average)
        return model.eval()

    def save(self, work: Path) -> None:
        """Write the checkpoint (safetensors and JSON) and the averaged model."""
        parts = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self._optimizer_state(),
        }
        tensors = {
            f"{part}/{name}": t.contiguous() for part, named in parts.items() for name, t in named.items()
        }
        kept = {"step": str(self.step), "seconds": str(self.schedule.seconds)}
        save_file(tensors, work / "checkpoint.partial", kept)
        (work / "checkpoint.partial").replace(work / "checkpoint.safetensors")
        write_json(work / "checkpoint.json", kept)
        save_sealed(work / "model", self.averaged(), self.config)

    def resume(self, work: Path) -> bool:
        """Go on from the checkpoint; False where there is none."""
        if not (work / "checkpoint.json").exists():
            return False
        kept = json.loads((work / "checkpoint.json").read_text())
        self.step, self.schedule.before = int(kept["step"]), float(kept["seconds"])
        tensors = load_file(work / "checkpoint.safetensors")
        self.model.load_state_dict(_below(tensors, "model/"))
        self.average = _below(tensors, "average/")
        for name, parameter in self.model.named_parameters():
            self.optimizer.state[parameter] = _below(tensors, f"optimizer/{name}|")
        return True

    def _optimizer_state(self) -> dict[str, Tensor]:
        named = self.model.named_parameters()
        return {f"{n}|{key}": v for n, p in named for key, v in self.optimizer.state[p].items()}

    @torch.no_grad()
    def start(self, drawn: Drawings) -> None:
        """Begin with the weights of `concept-tower`, and each concept's point where its drawings are."""
        tensors, _ = read_tensors(shipped("towers") / "concept-tower.safetensors")
        self.namer.trunk.load_state_dict({n: t.float() for n, t in tensors.items()})
        self.model.eval()
        sums = torch.zeros(self.namer.points.shape)
        for start in range(0, len(drawn.drawings), 256):
            pictures = drawn.pixels[start : start + 256].float() / 255
            features = self.namer.trunk(2 * crops(pictures, ink_boxes(pictures)) - 1)
            for feature, drawing in zip(features, drawn.drawings[start : start + 256], strict=True):
                for place in self.names.covered(drawing.label):
                    sums[place] += feature
        middle = sums.mean(0)  # what all features share says nothing
        seen = sums.norm(dim=1, keepdim=True)
        points = torch.where(
            seen > 0, F.normalize(sums, dim=1) - F.normalize(middle, dim=0) * 0.5, self.namer.points * 0.05
        )
        self.namer.points.copy_(F.normalize(points, dim=1))
        self.average = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


def named_loss(logits: Tensor, covered: Tensor) -> Tensor:
    """-log of the sum of P over the concepts that the name covers, smoothed."""
    total = logits.logsumexp(1)
    own = logits.masked_fill(~covered, -torch.inf).logsumexp(1)
    return ((1 - SMOOTHING) * (total - own) + SMOOTHING * (total - logits.mean(1))).mean()


@torch.inference_mode()
def share_right(model: nn.ModuleDict, names: Names, drawn: Drawings) -> float:
    """Of drawings that were left out, how many are named right among all concepts."""
    right = 0
    for start in range(0, len(drawn.drawings), 256):
        pictures = drawn.pixels[start : start + 256].float() / 255
        logits, _ = model["namer"](crops(pictures, ink_boxes(pictures)))
        for row, drawing in zip(logits.argmax(1).tolist(), drawn.drawings[start : start + 256], strict=True):
            right += row in names.covered(drawing.label)
    return right / len(drawn.drawings)


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
    parser.add_argument("--rate", type=float, default=RATE, help="highest learning rate")
    parser.add_argument("--save-every", type=int, default=250, help="steps")
    add_options(parser, steps=8000, batch=96, cooldown=0.5)
    arguments = parser.parse_args()
    check_held_out(training_folders(arguments.pictures))
    every = drawings(arguments.pictures)
    learned, left_out = split(every)
    drawn, kept = read_drawings(learned), read_drawings(left_out)
    config = SealedConfig(tuple(map(tuple, concept_names(every).values())), PLAIN_COLORS)
    trainer = Trainer(config, arguments)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if not trainer.resume(arguments.work):
        trainer.start(drawn)
    print(f"{len(learned)} drawings, {len(left_out)} left out, {len(config.names)} concepts")
    scenes = arguments.batch // 3
    batches = Batches(drawn, sprites(learned), trainer.names, arguments.batch - scenes, scenes)
    train(trainer, batches, kept, arguments)


def train(trainer: Trainer, batches: Batches, kept: Drawings, arguments: argparse.Namespace) -> None:
    """Step until the schedule ends, with a log, and checkpoints."""
    sums: dict[str, list[Tensor]] = {}
    first, before = trainer.step, trainer.schedule.seconds
    with (arguments.work / "log.jsonl").open("a", encoding="utf-8") as log:
        while trainer.schedule.share_left(trainer.step):
            trainer.model.train()
            for name, value in trainer.run_step(batches.batch(trainer.step)).items():
                sums.setdefault(name, []).append(value)
            if trainer.step % arguments.save_every == 0:
                trainer.save(arguments.work)
            if trainer.step % 50 == 0:
                means = {name: round(torch.stack(values).mean().item(), 4) for name, values in sums.items()}
                if not math.isfinite(sum(means.values())):
                    raise SystemExit(f"a loss is not finite by step {trainer.step}: {means}; lower --rate")
                speed = (trainer.step - first) / (trainer.schedule.seconds - before)
                row = {"step": trainer.step, **means, "steps_per_second": round(speed, 2)}
                if trainer.step % 500 == 0:
                    row["left out right"] = round(share_right(trainer.averaged(), trainer.names, kept), 4)
                log.write(json.dumps(row) + "\n")
                log.flush()
                print(json.dumps(row), flush=True)
                sums.clear()
    trainer.save(arguments.work)
    print(json.dumps({"left out right": share_right(trainer.averaged(), trainer.names, kept)}))


if __name__ == "__main__":
    main()
