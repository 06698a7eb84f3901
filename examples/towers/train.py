"""Trains the two towers that ship, for 64 px pictures on white, on one core in minutes.

    python examples/towers/train.py concept-tower --pictures examples/emoji/out --out promptcdm/shipped/towers
    python examples/towers/train.py instance-tower --pictures examples/emoji/out --out promptcdm/shipped/towers
    python examples/towers/train.py ... --device cuda --batch 512 --steps 4000 --minutes 0.6

concept-tower   cross-entropy of the concept and of the source, on concepts of which no source has a held-out picture
instance-tower  which two views are of one picture in one style (NT-Xent, Chen et al. 2020), on noto, flat-color-icons
                and drawn shapes: no picture of a source

Nothing below heldout/ or withheld/ is read but the names of held-out concepts. Pictures of a share-alike collection are
left out, so that the weights may be used as the code is.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from shapes import draw_shapes, moved, restyled, toned
from torch import Tensor, nn

from promptcdm.embedded_tower import EMBEDDED, FEATURES, EmbeddedNetwork
from promptcdm.tensorfile import write_tensors

SHARE_ALIKE = ("openmoji",)
NOT_SOURCES = ("noto", "flat-color-icons")
STEPS = {"concept-tower": 1450, "instance-tower": 1050}  # twelve minutes each on an idle core
BATCH = {"concept-tower": 128, "instance-tower": 48}
SEED = 4
SCALE = 16.0  # of cosines before a softmax over concepts
TEMPERATURE = 0.1
RATE = 2e-3


@dataclass(frozen=True)
class Plan:
    """So many steps of so many pictures, or so many seconds if those end first; 0 is no limit."""

    steps: int
    seconds: float = 0.0
    batch: int = 128
    device: str = "cpu"

    def done(self, step: int, elapsed: float) -> float:
        """The share that is done."""
        return max(step / self.steps, elapsed / self.seconds if self.seconds else 0.0)


@dataclass(frozen=True)
class Pictures:
    """Pictures (N, 3, 64, 64) of 8 bits, with their concepts and collections."""

    pixels: Tensor
    concepts: tuple[str, ...]
    collections: tuple[str, ...]


def read_collections(root: Path, wanted: Callable[[str, str], bool]) -> Pictures:
    """Pictures of the collections directly in `root` for which `wanted(collection, concept)`."""
    pixels, concepts, collections = [], [], []
    for listing in sorted(root.glob("*/metadata.jsonl")):
        for line in listing.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            name = listing.parent.name
            if wanted(name, row["concept"]):
                pixels.append(_pixels(Image.open(listing.parent / row["file_name"])))
                concepts.append(row["concept"])
                collections.append(name)
    return Pictures(torch.stack(pixels), tuple(concepts), tuple(collections))


def held_out_concepts(root: Path) -> set[str]:
    """Concepts of which any source has a held-out picture."""
    rows = (
        json.loads(line)
        for listing in root.glob("heldout/*/metadata.jsonl")
        for line in listing.read_text(encoding="utf-8").splitlines()
    )
    return {row["concept"] for row in rows}


def train_concepts(root: Path, plan: Plan) -> tuple[EmbeddedNetwork, int]:
    """`concept-tower`, and the steps it had."""
    held = held_out_concepts(root)
    pictures = read_collections(root, lambda name, concept: name not in SHARE_ALIKE and concept not in held)
    _say(f"{len(pictures.concepts)} pictures, {len(held)} concepts held out")
    concept, source = (_numbers(n).to(plan.device) for n in (pictures.concepts, pictures.collections))
    pixels = pictures.pixels.to(plan.device)
    network = EmbeddedNetwork().to(plan.device)
    heads = nn.ModuleList(nn.Linear(FEATURES, int(each.max()) + 1, bias=False) for each in (concept, source))
    heads.to(plan.device)
    generator = torch.Generator(plan.device).manual_seed(SEED)

    def loss() -> Tensor:
        chosen = torch.randint(len(concept), (plan.batch,), generator=generator, device=plan.device)
        views = moved(pixels[chosen].float() / 255, generator, turn=0.15, scale=0.15, shift=0.12)
        features = network(_scaled(toned(views, generator, 0.15)))
        cosines = [F.linear(features, F.normalize(head.weight, dim=1)) * SCALE for head in heads]
        return F.cross_entropy(cosines[0], concept[chosen], label_smoothing=0.1) + F.cross_entropy(
            cosines[1], source[chosen]
        )

    return network, _optimize(network, [*network.parameters(), *heads.parameters()], loss, plan)


def train_instances(root: Path, plan: Plan, drawn: int = 4000) -> tuple[EmbeddedNetwork, int]:
    """`instance-tower`, and the steps it had.

    Each picture comes in two styles, which are two instances, and each of them in two views.
    """
    known = read_collections(root, lambda name, concept: name in NOT_SOURCES)
    shapes = torch.stack([_pixels(draw_shapes(SEED * 1_000_000 + n)) for n in range(drawn)])
    pixels = torch.cat([known.pixels, shapes]).to(plan.device)
    _say(f"{len(known.pixels)} pictures and {drawn} drawn ones")
    network = EmbeddedNetwork().to(plan.device)
    generator = torch.Generator(plan.device).manual_seed(SEED)
    count = 2 * plan.batch
    itself = torch.eye(2 * count, dtype=torch.bool, device=plan.device)
    partner = (torch.arange(2 * count, device=plan.device) + count) % (2 * count)

    def loss() -> Tensor:
        # Half of the batch are known pictures, which are fewer.
        halves = [
            torch.randint(low, high, (plan.batch // 2,), generator=generator, device=plan.device)
            for low, high in ((0, len(known.pixels)), (len(known.pixels), len(pixels)))
        ]
        base = pixels[torch.cat(halves)].float() / 255
        instances = restyled(base, generator)
        views = [
            toned(moved(instances, generator, turn=0.2, scale=0.2, shift=0.15), generator, 0.2)
            for _ in range(2)
        ]
        features = network(_scaled(torch.cat(views)))
        cosines = (features @ features.T / TEMPERATURE).masked_fill(itself, -torch.inf)
        return F.cross_entropy(cosines, partner)

    return network, _optimize(network, list(network.parameters()), loss, plan)


def _optimize(
    network: nn.Module, parameters: Sequence[nn.Parameter], loss: Callable[[], Tensor], plan: Plan
) -> int:
    """Train to the end of the plan, the learning rate falling by a cosine to 0; returns the steps."""
    network.train()
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.05)
    start, step = time.monotonic(), 0
    while (done := plan.done(step, time.monotonic() - start)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / 20, 0.5 * (1 + math.cos(math.pi * done)))
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if step % 20 == 0:
            _say(f"step {step}, {100 * done:.0f} %: {value.item():.3f}, {time.monotonic() - start:.0f} s")
        step += 1
    return step


def save_tower(network: nn.Module, path: Path, steps: int) -> None:
    """Write the tensors as fp16 safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).cpu()
        for name, tensor in network.state_dict().items()
    }
    write_tensors(
        path, tensors, {"made_by": "examples/towers/train.py", "steps": str(steps), "seed": str(SEED)}
    )


def _pixels(image: Image.Image) -> Tensor:
    rgb = np.array(image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC))
    return torch.from_numpy(rgb).permute(2, 0, 1)


def _scaled(x: Tensor) -> Tensor:
    return ((x - 0.5) / 0.5).contiguous(memory_format=torch.channels_last)


def _numbers(names: Sequence[str]) -> Tensor:
    known = {name: number for number, name in enumerate(sorted(set(names)))}
    return torch.tensor([known[name] for name in names])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train one tower."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tower", choices=EMBEDDED)
    parser.add_argument(
        "--pictures", type=Path, required=True, help="what examples/emoji/build.py made, at 64 px"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the tower's file")
    parser.add_argument("--steps", type=int, default=0, help="0 for twelve minutes on an idle core")
    parser.add_argument(
        "--minutes", type=float, default=0, help="end after so many, whatever the steps; 0 for no limit"
    )
    parser.add_argument("--batch", type=int, default=0, help="pictures a step; 0 for what suits a core")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    given = parser.parse_args(arguments)
    torch.manual_seed(SEED)
    train = train_concepts if given.tower == "concept-tower" else train_instances
    steps, batch = given.steps or STEPS[given.tower], given.batch or BATCH[given.tower]
    network, steps = train(given.pictures, Plan(steps, 60 * given.minutes, batch, given.device))
    save_tower(network, given.out / f"{given.tower}.safetensors", steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
