"""Held-out loss of our defaults and of diffusers' script's, each with as many pictures seen.

    python eval/bench/train_quality.py --script train_text_to_image_lora.py --data FOLDER ... [--backbone nano]
                                       [--held-out 0.2] [--device cpu] [--out FILE.json]

Each folder is a source. A share of its pictures, drawn by `--held-out`, is kept from both trainers; both see the same
others, at the same resolution, as often: the script takes so many steps of its own batch that it has seen as many as
our default steps show. All else is each one's default. What comes out is measured on the pictures held out, at four
timesteps each, with the same noise for all, through the same UNet:

    mse       mean squared error of the prediction, which the script trains on
    min-snr   the same, weighted as ours trains on it

`backbone` is the bare UNet. The interval is that of the difference ours - theirs over the pictures (95 %, bootstrap).
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from their_trainer import LORA, flags_of, load_script, run_script
from torch import Tensor

from promptcdm import lora
from promptcdm.backbone import Backbone
from promptcdm.batch import PLAIN, Batch, weighted_errors
from promptcdm.encoded_source import EncodedSource, encode_source, held_out_items
from promptcdm.held_out import TIMESTEPS, held_out_batches
from promptcdm.import_adapter import import_adapter
from promptcdm.settings import TrainSettings
from promptcdm.shipped import shipped
from promptcdm.source import Source
from promptcdm.train import train_adapter

THEIR_BATCH = 16  # the script's default
WEIGHTS = {"mse": 0.0, "min-snr": 5.0}  # by the setting min_snr
DRAWS = 2000


def write_imagefolder(source: Source, numbers: Sequence[int], folder: Path) -> None:
    """Pictures of a source and their captions, as the script reads them."""
    folder.mkdir(parents=True)
    rows = []
    for i in numbers:
        source.picture(i).save(folder / f"{i:05d}.png")
        rows.append({"file_name": f"{i:05d}.png", "text": source.items[i].caption})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")


@torch.no_grad()
def errors(
    tensors: dict[str, Tensor],
    batches: Sequence[Batch],
    data: EncodedSource,
    backbone: Backbone,
    settings: TrainSettings,
) -> Tensor:
    """The error (I,) of each picture held out, its mean over the timesteps, with this LoRA or, for {}, without."""
    if tensors:
        lora.insert(backbone.unet, "measured", tensors)
    try:
        with backbone.lock, lora.running(backbone.unet, "measured" if tensors else None):
            rows = [weighted_errors(PLAIN, batch, data, backbone, settings) for batch in batches]
    finally:
        if tensors:
            lora.remove(backbone.unet, "measured")
    return torch.cat(rows).cpu().reshape(-1, TIMESTEPS).mean(1)


def interval(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """95 % of the mean difference, by bootstrap over pictures."""
    difference = (ours - theirs).double().numpy()
    chosen = np.random.default_rng(0).integers(len(difference), size=(DRAWS, len(difference)))
    low, high = np.quantile(difference[chosen].mean(1), [0.025, 0.975])
    return round(float(low), 5), round(float(high), 5)


def compare(folder: Path, args: argparse.Namespace, backbone: Backbone, place: Path) -> dict[str, object]:
    """Train both on one source, and measure."""
    source, settings = Source.open(folder), TrainSettings(held_out=args.held_out, mixed_precision="no")
    if args.steps:
        settings = replace(settings, steps=args.steps)
    out = held_out_items(source, settings)
    rest = [i for i in range(len(source)) if i not in out]
    began = time.process_time()
    ours = train_adapter(source, backbone, settings)
    our_seconds = time.process_time() - began
    write_imagefolder(source, rest, place / "pictures")
    steps = math.ceil(settings.steps * settings.rows / THEIR_BATCH)
    where = shipped("nano") if args.backbone == "nano" else Path(args.backbone)
    flags = flags_of(
        where,
        place / "pictures",
        place / "out",
        steps=steps,
        batch=THEIR_BATCH,
        resolution=backbone.resolution,
        precision="no",
    )
    began = time.process_time()
    run_script(load_script(args.script), flags, args.device)
    their_seconds = time.process_time() - began
    theirs = import_adapter(place / "out" / LORA, "theirs", backbone)
    data = encode_source(source, backbone, settings, source.trigger)
    batches = held_out_batches(data, backbone, settings, source.manifest().merkle_root)
    row: dict[str, object] = {
        "source": source.name,
        "trained on": len(rest),
        "held out": len(out),
        "seen": settings.steps * settings.rows,
        "seconds": [round(our_seconds), round(their_seconds)],
    }
    for name, gamma in WEIGHTS.items():
        weighed = replace(settings, min_snr=gamma)
        each = [errors(t, batches, data, backbone, weighed) for t in ({}, theirs.lora, ours.lora)]
        losses = zip(("backbone", "theirs", "ours"), each, strict=True)
        row[name] = {who: round(float(e.double().mean()), 5) for who, e in losses}
        row[f"{name}, ours - theirs"] = interval(each[2], each[1])
    return row


def main() -> None:
    """Compare on every folder and print a line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--script", type=Path, required=True, help="your copy of diffusers' script")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of pictures")
    parser.add_argument("--backbone", default="nano", help="nano, or a diffusers folder")
    parser.add_argument("--held-out", type=float, default=0.2)
    parser.add_argument("--steps", type=int, default=0, help="our steps; 0 is our default")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    backbone = Backbone.load(args.backbone, device=args.device, dtype="float32")
    rows = []
    for folder in args.data:
        place = Path(tempfile.mkdtemp(prefix="promptcdm-"))
        try:
            rows.append(compare(folder, args, backbone, place))
        finally:
            shutil.rmtree(place)
        print(json.dumps(rows[-1]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
