"""Trains `sealed-judge` on a pack of drawings and scenes; resumes where it stopped.

    python examples/sealed_judge/pack.py --pictures examples/emoji/out --out work/sealed/pack.safetensors --workers 14
    python examples/sealed_judge/train.py --pack work/sealed/pack.safetensors --work work/sealed --device cuda \
        --minutes 1.3

Both networks begin with random weights. The finder learns boxes; the namer learns concepts and colours from crops,
first small ones, then larger ones. A name of several concepts (a "heart") is right by their sum. Half of the crops are
blended with others (mixup), and are both in these shares.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from pathlib import Path

import torch
from batches import SEED, Batch, Batches
from left_out import measure
from losses import color_loss, finder_losses, named_loss
from pack import Pack, read_pack
from safetensors.torch import load_file, save_file
from split import EMOJI
from torch import Tensor, nn

from promptcdm.question_words import PLAIN_COLORS
from promptcdm.sealed_judge import SealedConfig, save_sealed
from promptcdm.sealed_names import Names
from promptcdm.sealed_network import CROP, Finder, Namer, crops
from promptcdm.statements import plain
from promptcdm.tensorfile import write_json

sys.path.append(str(Path(__file__).parents[1] / "nano"))  # plain files, not a package
from optimizer import MatrixOptimizer
from schedule import Schedule, add_options

RATE = 4e-3
WEIGHT_DECAY = 0.05
NOT_MATRICES = ("points", "colors.weight", "heads.weight", "head.weight")
SMALL, SMALL_SHARE = 40, 0.4  # pixels a side of a crop in the first part of the run, and that part
FINDER_EVERY = 2  # steps
SCENES = 4  # one picture of so many is a scene
MIXED, EVENLY = 0.5, 0.4  # share of the crops under mixup, and the Beta(EVENLY, EVENLY) of its weight
EMA = 0.995


def concept_names(pack: Pack) -> list[tuple[str, ...]]:
    """The names of each concept: its labels, and the nouns of scenes."""
    names: dict[str, list[str]] = {concept: [*labels] for concept, labels in pack.concepts.items()}
    for table in ("countable", "recolourable"):
        with (EMOJI / f"{table}.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["concept"] in names:
                    names[row["concept"]].append(plain(row["noun"]))
    return [tuple(dict.fromkeys(each)) for _, each in sorted(names.items())]


class Trainer:
    """The two networks, their average, and what one step needs; its whole state is saved and read back."""

    def __init__(self, config: SealedConfig, arguments: argparse.Namespace) -> None:
        torch.manual_seed(SEED)
        self.config, self.rate, self.device = config, arguments.rate, arguments.device
        self.model = config.build().to(self.device)
        self.finder: Finder = self.model["finder"]  # type: ignore[assignment]
        self.namer: Namer = self.model["namer"]  # type: ignore[assignment]
        self.average = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.optimizer = MatrixOptimizer(self.model, self.rate, WEIGHT_DECAY, NOT_MATRICES)
        self.schedule = Schedule(arguments.steps, arguments.minutes, arguments.cooldown)
        self.step = 0

    def run_step(self, batches: Batches) -> dict[str, Tensor]:
        """Take one optimizer step; return its losses and accuracies."""
        batch = batches.batch(self.step)
        losses, shares = self._name(batch, batches)
        if self.step % FINDER_EVERY == 0:
            with self._narrow():
                found = self.finder(batch.pictures.contiguous(memory_format=torch.channels_last))
            losses |= finder_losses(found, batch.boxes)
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 2.0)
        self.optimizer.step(self.rate * self.schedule.rate(self.step))
        keep = min(EMA, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            state = self.model.state_dict()
            floats = [name for name, tensor in state.items() if tensor.is_floating_point()]
            torch._foreach_lerp_([self.average[n] for n in floats], [state[n] for n in floats], 1 - keep)
        self.step += 1
        return {name: value.detach() for name, value in {**losses, **shares}.items()}

    def _name(self, batch: Batch, batches: Batches) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        small = self.schedule.share_left(self.step) > 1 - SMALL_SHARE
        seen = batches.hide(crops(batch.pictures[batch.image], batch.box, SMALL if small else CROP))
        over, share = batches.mixing(len(seen), MIXED, EVENLY)
        seen = seen.lerp(seen[over], share[:, None, None, None])
        with self._narrow():
            concepts, colors = self.namer(seen.contiguous(memory_format=torch.channels_last))
        concepts, alone = concepts.float(), share == 0
        own, other = named_loss(concepts, batch.concepts), named_loss(concepts, batch.concepts[over])
        known = batch.colors.masked_fill(~alone, -1)
        right = batch.concepts.gather(1, concepts.argmax(1, keepdim=True))[:, 0] & alone
        return (
            {
                "concepts": own.lerp(other, share).mean(),
                "colors": 0.5 * color_loss(colors.float(), known),
            },
            {"concepts right": right.sum() / alone.sum()},
        )

    def _narrow(self) -> torch.autocast:
        """bf16 where a GPU is: not every processor has instructions for it."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.device != "cpu")

    def averaged(self) -> nn.ModuleDict:
        """The model with averaged weights, for use."""
        model = self.config.build().to(self.device)
        model.load_state_dict(self.average)
        return model.eval()

    def save(self, work: Path) -> None:
        """Write the checkpoint (safetensors and JSON) and the averaged model."""
        parts = {
            "model": self.model.state_dict(),
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
        save_sealed(work / "model", self.averaged(), self.config)

    def resume(self, work: Path) -> None:
        """Go on from the checkpoint, where there is one."""
        if not (work / "checkpoint.json").exists():
            return
        kept = json.loads((work / "checkpoint.json").read_text())
        self.step, self.schedule.before = int(kept["step"]), float(kept["seconds"])
        tensors = load_file(work / "checkpoint.safetensors", device=str(self.device))
        self.model.load_state_dict(_below(tensors, "model/"))
        self.average = _below(tensors, "average/")
        self.optimizer.load(_below(tensors, "optimizer/"))


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def main() -> None:
    """Train to the end, or on from the last checkpoint."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pack", type=Path, required=True, help="file that pack.py made")
    parser.add_argument("--work", type=Path, required=True, help="checkpoint, log and model")
    parser.add_argument("--rate", type=float, default=RATE, help="highest learning rate")
    parser.add_argument("--save-every", type=int, default=500, help="steps")
    add_options(parser, steps=8000, batch=1024, cooldown=0.7)
    arguments = parser.parse_args()
    if arguments.device != "cpu":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    pack = read_pack(arguments.pack, arguments.device)
    config = SealedConfig(tuple(concept_names(pack)), PLAIN_COLORS)
    trainer = Trainer(config, arguments)
    arguments.work.mkdir(parents=True, exist_ok=True)
    trainer.resume(arguments.work)
    scenes = arguments.batch // SCENES
    batches = Batches(pack, Names(config.names), arguments.batch - scenes, scenes)
    print(
        f"{len(pack.learned.labels)} drawings, {len(pack.left_out.labels)} left out, {len(pack.scenes.labels)} scenes, "
        f"{len(config.names)} concepts, from step {trainer.step}",
        flush=True,
    )
    train(trainer, batches, arguments)


def train(trainer: Trainer, batches: Batches, arguments: argparse.Namespace) -> None:
    """Step until the schedule ends, with a log, and checkpoints."""
    sums: dict[str, list[Tensor]] = {}
    first, before = trainer.step, trainer.schedule.seconds
    with (arguments.work / "log.jsonl").open("a", encoding="utf-8") as log:
        while trainer.schedule.share_left(trainer.step):
            trainer.model.train()
            for name, value in trainer.run_step(batches).items():
                sums.setdefault(name, []).append(value)
            if trainer.step % arguments.save_every == 0:
                trainer.save(arguments.work)
            if trainer.step % 50 == 0:
                means = {name: round(torch.stack(values).mean().item(), 4) for name, values in sums.items()}
                if not math.isfinite(sum(means.values())):
                    raise SystemExit(f"a loss is not finite by step {trainer.step}: {means}; lower --rate")
                speed = (trainer.step - first) / (trainer.schedule.seconds - before)
                row = {"step": trainer.step, **means, "steps_per_second": round(speed, 2)}
                if trainer.step % 250 == 0:
                    row |= measure(trainer.averaged(), batches.pack, batches.covered)
                log.write(json.dumps(row) + "\n")
                log.flush()
                print(json.dumps(row), flush=True)
                sums.clear()
    trainer.save(arguments.work)
    print(json.dumps({"step": trainer.step, **measure(trainer.averaged(), batches.pack, batches.covered)}))


if __name__ == "__main__":
    main()
