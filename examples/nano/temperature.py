"""Fit the routers' temperatures on pseudo-sources: topics of the backbone's own training pictures.

    python examples/nano/temperature.py --pictures DIR/noto

Half of each topic's pictures give its statistics; on the other half the routers must say which topic a noisy picture
with its caption is from. Printed: mean negative log-likelihood in nats, by temperature and noise level. The best
values are the constants of promptcdm/router.py. No source is touched, so nothing here has to be forgotten with one.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from promptcdm.backbone import Backbone
from promptcdm.router import SourceStatistics, posterior_router, prompt_prior
from promptcdm.statistics import caption_prototypes, latent_statistics

TABLE = Path(__file__).resolve().parent.parent / "emoji" / "concepts.csv"
ALPHA_BAR = (0.95, 0.7, 0.4, 0.15, 0.03)
PROMPT = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
POSTERIOR = (1.0, 16.0, 32.0, 64.0, 96.0, 128.0, 192.0, 256.0)


def pictures_by_topic(folder: Path) -> dict[str, list[tuple[Path, str]]]:
    """(file, caption) of every picture, by emojibase group, for groups of at least 40."""
    with TABLE.open(encoding="utf-8", newline="") as rows:
        group = {row["concept"]: row["group"] for row in csv.DictReader(rows)}
    found: dict[str, list[tuple[Path, str]]] = defaultdict(list)
    for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found[group.get(row["concept"], "own")].append((folder / row["file_name"], row["text"]))
    return {topic: items for topic, items in sorted(found.items()) if len(items) >= 40 and topic != "own"}


def log_loss(w: Tensor, truth: Tensor) -> float:
    """Mean of -log w of the true source, in nats."""
    return float(-w.gather(1, truth[:, None]).clamp(min=1e-12).log().mean())


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--backbone", default="nano")
    args = parser.parse_args()
    backbone = Backbone.load(args.backbone, device="cpu")
    scale = backbone.pipe.vae.config.scaling_factor
    means, variances, prototypes = [], [], []
    held_x, held_c, truth = [], [], []
    for number, (topic, items) in enumerate(pictures_by_topic(args.pictures).items()):
        mean, std = backbone.encode_images([Image.open(file).convert("RGB") for file, _ in items])
        text = torch.cat([backbone.encode_prompts([caption]).mean.float() for _, caption in items])
        own, held = slice(0, None, 2), slice(1, None, 2)
        latent_mean, latent_var = latent_statistics(mean[own] * scale, std[own] * scale)
        means.append(latent_mean)
        variances.append(latent_var)
        prototypes.append(caption_prototypes(text[own])[0])
        held_x.append(mean[held] * scale)
        held_c.append(text[held])
        truth.append(torch.full((len(held_x[-1]),), number))
        print(f"{topic}: {len(items)} pictures")
    x_0, captions, source = torch.cat(held_x), torch.cat(held_c), torch.cat(truth)
    statistics = SourceStatistics(torch.stack(means), torch.stack(variances))
    print(f"uniform: {log_loss(torch.full((len(x_0), len(means)), 1 / len(means)), source):.3f}")
    for temperature in PROMPT:
        print(
            f"prompt T={temperature}: {log_loss(prompt_prior(captions, prototypes, temperature), source):.3f}"
        )
    best = min(PROMPT, key=lambda t: log_loss(prompt_prior(captions, prototypes, t), source))
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    flat = torch.full((len(means),), 1 / len(means))
    for name, prior in (("uniform", flat), ("prompt", prompt_prior(captions, prototypes, best))):
        print(f"posterior over the {name} prior, columns alpha_bar {ALPHA_BAR} and their mean")
        for temperature in POSTERIOR:
            losses = []
            for alpha_bar in ALPHA_BAR:
                x_t = alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * noise
                w = posterior_router(statistics, prior, temperature)(x_t, torch.full((len(x_t),), alpha_bar))
                losses.append(log_loss(w, source))
            row = " ".join(f"{loss:.3f}" for loss in (*losses, sum(losses) / len(losses)))
            print(f"  T={temperature}: {row}")


if __name__ == "__main__":
    main()
