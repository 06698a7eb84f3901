"""Measure nano: 40 objects that were drawn by lot before training, one picture each, and the VAE's reconstruction.

    python examples/nano/measure.py --nano promptcdm/shipped/nano [--pictures DIR ...] [--judge nano-judge]

Writes bar.png (the grid, in reading order) and bar.json (what was asked and what the judge said) beside the weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw
from wordings import with_article

from promptcdm.judge import Asked, load_judge

HERE = Path(__file__).resolve().parent
QUESTION = "what is in the picture?"
STEPS, GUIDANCE = 25, 5.0


def draw(pipe: StableDiffusionPipeline, name: str, seed: int) -> Image.Image:
    """One picture of one object; no picture is redrawn."""
    generator = torch.Generator().manual_seed(seed)
    made = pipe(with_article(name), num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generator)
    return made.images[0]


def sheet(pictures: list[Image.Image], names: list[str] | None, columns: int = 8) -> Image.Image:
    """The grid, twice as large, with names below where they are given."""
    step = (136, 150 if names else 136)
    rows = -(-len(pictures) // columns)
    grid = Image.new("RGB", (columns * step[0], rows * step[1]), "white")
    for n, picture in enumerate(pictures):
        corner = (n % columns * step[0] + 4, n // columns * step[1] + 4)
        grid.paste(picture.resize((128, 128), Image.Resampling.LANCZOS), corner)
        if names:
            ImageDraw.Draw(grid).text((corner[0] + 4, corner[1] + 130), names[n], fill="black")
    return grid


def psnr(pipe: StableDiffusionPipeline, folder: Path, most: int = 200) -> float:
    """Mean PSNR in dB of decode(encode(x)) over a folder's pictures, pixels from 0 to 1."""
    files = sorted(folder.glob("*.png"))[:: max(1, len(list(folder.glob("*.png"))) // most)]
    values = []
    for file in files:
        pixels = np.asarray(Image.open(file).convert("RGB"), np.float32) / 127.5 - 1
        x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
        with torch.no_grad():
            y = pipe.vae.decode(pipe.vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
        values.append(10 * torch.log10(4 / (y - x).square().mean()).item())
    return float(np.mean(values))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nano", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, nargs="*", default=[], help="folders to reconstruct")
    parser.add_argument("--judge", default="", help="a judge of promptcdm; left out: draw only")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pipe = StableDiffusionPipeline.from_pretrained(args.nano, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    objects = json.loads((HERE / "bar.json").read_text(encoding="utf-8"))["objects"]
    pictures = [draw(pipe, row["name"], args.seed + n) for n, row in enumerate(objects)]
    sheet(pictures, None).save(args.nano / "bar.png")
    result: dict[str, object] = {"steps": STEPS, "guidance_scale": GUIDANCE, "seed": args.seed}
    if args.judge:
        asked = [
            Asked(picture, QUESTION, tuple(sorted([row["name"], *row["distractors"]])))
            for picture, row in zip(pictures, objects, strict=True)
        ]
        answers = [answer.choice for answer in load_judge(args.judge).answers(asked)]
        names = [row["name"] for row in objects]
        right = sum(a == n for a, n in zip(answers, names, strict=True))
        result |= {"judge": args.judge, "right": right, "of": len(names)}
        result["answers"] = [{"name": n, "judge": a} for n, a in zip(names, answers, strict=True)]
        sheet(pictures, names).save(args.nano / "bar.png")
    result["psnr_db"] = {folder.name: round(psnr(pipe, folder), 2) for folder in args.pictures}
    (args.nano / "bar.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in result.items() if k != "answers"}))


if __name__ == "__main__":
    main()
