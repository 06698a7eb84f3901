"""Measures attribution: of real pictures that no source trained on, how many are attributed to their own source.

    python eval/attribution.py --heldout examples/emoji/slice/heldout --out attribution.json

The folder has one folder of pictures for each source of the store, by its name. As many of each are drawn by the seed,
at most `--count` together. Printed for each method: top-1 with Wilson's 95 % interval, the same for each source, and
the cost in rows of the UNet a picture. A picture whose pixels are in an adapter's manifest is left out, and counted.
No judge has a part in it. docs/attribution.md says what the methods are.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from promptcdm.attribute import Attribution, attribute, by_denoising, by_leaving_out
from promptcdm.backbone import Backbone
from promptcdm.config import settle
from promptcdm.errors import BadInput, PromptCDMError, RunFailed
from promptcdm.fixed_noise import clean_latents
from promptcdm.intervals import wilson_interval
from promptcdm.picture import pixels_digest
from promptcdm.picture_folder import PictureFolder
from promptcdm.settings import AttributeSettings
from promptcdm.shipped import shipped
from promptcdm.source_errors import source_errors
from promptcdm.store import AdapterStore

METHODS = ("palette", "statistics", "denoising", "leave-one-out")


@dataclass(frozen=True)
class HeldOut:
    """Pictures that no source trained on."""

    images: list[Image.Image]
    source: list[str]
    captions: list[str]
    trained_on: int  # left out: they are in an adapter's manifest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; 0 done, 1 failed, 2 wrong input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--heldout", type=Path, help="folder of a folder a source (default: what ships)")
    parser.add_argument("--store", type=Path, help="adapters (default: those that ship)")
    parser.add_argument("--backbone", default="nano", help="nano or a diffusers folder (default: nano)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--allowed", help="sources, with commas (default: those of both folders)")
    parser.add_argument("--methods", default=",".join(METHODS), help="with commas (default: all)")
    parser.add_argument("--captions", action="store_true", help="tell each picture's caption, not --prompt")
    parser.add_argument("--count", type=int, default=400, help="pictures at most (default: 400)")
    parser.add_argument("--out", type=Path, help="JSON of everything")
    for setting in fields(AttributeSettings):
        if setting.name != "method":
            words = f"{setting.metadata['help']} [{setting.default}]"
            parser.add_argument(f"--{setting.name.replace('_', '-')}", help=words)
    given = parser.parse_args(arguments)
    try:
        _measure(given, settle(AttributeSettings, {}, vars(given)))
    except PromptCDMError as error:
        print(f"attribution.py: {error}", file=sys.stderr)
        return 1 if isinstance(error, RunFailed) else 2
    return 0


def _measure(given: argparse.Namespace, settings: AttributeSettings) -> None:
    folder = given.heldout or shipped("emoji") / "heldout"
    store = AdapterStore(given.store or shipped("adapters"))
    both = sorted({path.name for path in folder.glob("*") if path.is_dir()} & set(store.sources()))
    allowed = given.allowed.split(",") if given.allowed else both
    if len(allowed) < 2:
        raise BadInput(
            f"{folder} and {store.root} have {len(allowed)} sources in common; 2 or more are needed"
        )
    held_out = draw(folder, store, allowed, given.count, settings.seed)
    backbone = Backbone.load(given.backbone, device=given.device)
    results: dict[str, Any] = {}
    print(
        f"{len(held_out.images)} pictures of {len(allowed)} sources, {held_out.trained_on} trained on left out"
    )
    methods = given.methods.split(",")
    if not set(methods) <= set(METHODS):
        raise BadInput(f"--methods is {given.methods}; accepted: {', '.join(METHODS)}")
    prompts = held_out.captions if given.captions else [settings.prompt] * len(held_out.images)
    for group in (("palette",), ("statistics",), ("denoising", "leave-one-out")):
        asked = [method for method in group if method in methods]
        if not asked:
            continue
        begun = time.perf_counter()
        if asked == ["denoising", "leave-one-out"]:
            found = from_same_rows(held_out.images, prompts, allowed, backbone, store, settings)
        else:
            alone = replace(settings, method=asked[0])
            options: dict[str, Any] = {"allowed": allowed, "backbone": backbone, "store": store}
            found = {asked[0]: attribute(held_out.images, prompts=prompts, settings=alone, **options)}
        for method in asked:
            results[method] = account(found[method], held_out.source, allowed)
            results[method]["seconds"] = round(time.perf_counter() - begun, 1)
            print(_line(method, results[method]), flush=True)
    if given.out:
        adapters = {name: store.record(name).sha256 for name in allowed}
        facts = {"pictures": len(held_out.images), "trained_on_left_out": held_out.trained_on}
        facts |= {"backbone": backbone.digest, "adapters": adapters, "captions": given.captions}
        content = facts | {"settings": asdict(settings), "methods": results}
        given.out.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def from_same_rows(
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    allowed: Sequence[str],
    backbone: Backbone,
    store: AdapterStore,
    settings: AttributeSettings,
) -> dict[str, list[Attribution]]:
    """`denoising` and `leave-one-out` at the cost of one: they need the same rows."""
    adapters = [store.load(name) for name in allowed]
    found: dict[str, list[Attribution]] = {"denoising": [], "leave-one-out": []}
    for start in range(0, len(images), settings.batch_size):
        part = slice(start, start + settings.batch_size)
        errors = source_errors(
            *(backbone, adapters, clean_latents(backbone, images[part]), prompts[part]),
            noise_levels=settings.noise_levels,
            draws=settings.draws,
            seed=settings.seed,
            router=settings.router,
        )
        found["denoising"] += by_denoising(allowed, errors)
        found["leave-one-out"] += by_leaving_out(allowed, errors)
    return found


def draw(folder: Path, store: AdapterStore, allowed: Sequence[str], count: int, seed: int) -> HeldOut:
    """The same number of pictures of each source, at most `count` together. Raises BadInput where one has none."""
    manifests = [store.load(name).manifest for name in allowed]
    trained = {item.pixels_sha256 for manifest in manifests if manifest for item in manifest.items}
    found, left_out = {}, 0
    for name in allowed:
        pictures = PictureFolder.open(folder / name)
        captions = _captions(folder / name)
        order = np.random.default_rng(seed).permutation(len(pictures))
        mine = []
        for i in order.tolist():
            image = pictures.picture(i)
            if pixels_digest(image) in trained:
                left_out += 1
            elif len(mine) < count // len(allowed):
                mine.append((image, captions.get(pictures.files[i], "")))
        if not mine:
            raise BadInput(f"{folder / name}: no picture that no source trained on")
        found[name] = mine
    each = min(map(len, found.values()))
    rows = [(image, name, caption) for name, mine in found.items() for image, caption in mine[:each]]
    return HeldOut([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows], left_out)


def _captions(folder: Path) -> dict[str, str]:
    path = folder / "metadata.jsonl"
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["file_name"]: row["text"] for row in rows}


def account(found: Sequence[Attribution], truth: Sequence[str], allowed: Sequence[str]) -> dict[str, Any]:
    """Top-1 with its interval, that of each source, how often each was taken for which, and the mean cost."""
    right = sum(each.top == name for each, name in zip(found, truth, strict=True))
    taken = {name: dict.fromkeys(allowed, 0) for name in allowed}
    for each, name in zip(found, truth, strict=True):
        taken[name][each.top] += 1
    return {
        "top1": right / len(found),
        "interval": wilson_interval(right, len(found)),
        "by_source": {name: row[name] / max(sum(row.values()), 1) for name, row in taken.items()},
        "taken_for": taken,
        "row_forwards": sum(each.row_forwards for each in found) / len(found),
    }


def _line(method: str, result: dict[str, Any]) -> str:
    low, high = result["interval"]
    each = ", ".join(f"{name} {share:.2f}" for name, share in result["by_source"].items())
    rows = f"{result['row_forwards']:g} row-forwards a picture"
    return f"{method:14} top-1 {result['top1']:.3f} [{low:.3f}, {high:.3f}]  {rows}; {each}"


if __name__ == "__main__":
    sys.exit(main())
