"""Fit the routers' temperatures on pseudo-sources: topics of the backbone's own training pictures.

    python examples/nano/temperature.py --pictures DIR/noto

Half of each topic's pictures give its statistics; on the other half the routers must say which topic a noisy picture
with its caption is from. Printed: router loss (mean of -log w of the true topic, in nats) by noise level, for T = 1,
the best constant, today's table and the fitted one, then the constants of promptcdm/prompt_prior.py and of
promptcdm/router.py. No source is touched, so nothing here has to be forgotten with one.

The log T of each knot is fitted by Adam on half of the held-out pictures; the losses printed are of the other half.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from promptcdm.backbone import Backbone
from promptcdm.caption_words import CaptionWords
from promptcdm.prompt_prior import prompt_prior
from promptcdm.router import (
    POSTERIOR_TEMPERATURES,
    SourceStatistics,
    Temperatures,
    log_densities,
    stack_statistics,
    temperature_at,
)
from promptcdm.statistics import caption_prototypes, latent_covariance, latent_statistics

TABLE = Path(__file__).resolve().parent.parent / "emoji" / "concepts.csv"
KNOTS = tuple(knot for knot, _ in POSTERIOR_TEMPERATURES)  # log-SNR
WORD = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
PROTOTYPE = (0.02, 0.05, 0.1, 0.2, 0.5)
CONSTANT = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 96.0, 128.0, 192.0, 256.0)
STEPS = 150
Temperature = float | Temperatures


class Latents(NamedTuple):
    """What one topic says of its latents, as `stack_statistics` takes it."""

    latent_mean: Tensor
    latent_var: Tensor
    latent_factor: Tensor | None = None


class Captions(NamedTuple):
    """What one topic says of its captions, as `prompt_prior` takes it."""

    caption_prototypes: Tensor
    caption_words: CaptionWords


@dataclass(frozen=True)
class Held:
    """Held-out pictures at every knot's noise level."""

    prior: Tensor  # (I, N) from the caption
    source: Tensor  # (I,)
    log_density: Tensor  # (knots, I, N)

    def loss(self, temperature: Callable[[Tensor], Tensor]) -> Tensor:
        """-log w of the true topic, (knots,); `temperature` is of alpha_bar (knots,)."""
        t = temperature(torch.tensor(KNOTS).sigmoid())
        log_w = (self.prior.log() + self.log_density / t[:, None, None]).log_softmax(2)
        return -log_w.gather(2, self.source.expand(len(KNOTS), -1)[..., None]).squeeze(2).mean(1)

    def part(self, start: int) -> Held:
        """Every second picture."""
        own = slice(start, None, 2)
        return Held(self.prior[own], self.source[own], self.log_density[:, own])


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


def fit_table(held: Held) -> Temperatures:
    """The T of each knot, at least 1, that make the mean loss least."""
    above = torch.full((len(KNOTS),), 2.0, requires_grad=True)  # log T = softplus(above)
    optimizer = torch.optim.Adam([above], lr=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        held.loss(lambda _: torch.nn.functional.softplus(above).exp()).sum().backward()
        optimizer.step()
    t = torch.nn.functional.softplus(above).exp().tolist()
    return tuple((knot, round(value, 2)) for knot, value in zip(KNOTS, t, strict=True))


def report(name: str, losses: Tensor) -> None:
    """One line: the loss at each knot, and their mean."""
    print(f"{name:44}" + " ".join(f"{loss:7.3f}" for loss in [*losses.tolist(), float(losses.mean())]))


def compare(name: str, held: Held) -> Temperatures:
    """Print T = 1, the best constant, today's table and the fitted one; the last is returned."""
    fit, test = held.part(0), held.part(1)
    with torch.no_grad():
        best = min(CONSTANT, key=lambda t: float(fit.loss(lambda a: temperature_at(a, t)).mean()))
    table = fit_table(fit)
    choices: dict[str, Temperature] = {
        "T = 1": 1.0,
        f"T = {best:g}, best constant": best,
        "today's table": POSTERIOR_TEMPERATURES,
        "fitted table": table,
    }
    for label, temperature in choices.items():
        with torch.no_grad():
            report(f"{name}, {label}", test.loss(lambda a, t=temperature: temperature_at(a, t)))
    return table


@torch.no_grad()
def measure(
    folder: Path, backbone: Backbone
) -> tuple[dict[str, SourceStatistics], list[Captions], Tensor, list[str], Tensor]:
    """Statistics (diagonal and low rank), captions by topic, and the held-out latents, captions and topics."""
    scale = backbone.pipe.vae.config.scaling_factor
    diagonal, low_rank, known, held, texts = [], [], [], [], []
    for number, (topic, items) in enumerate(pictures_by_topic(folder).items()):
        mean, std = backbone.encode_images([Image.open(file).convert("RGB") for file, _ in items])
        text = torch.cat([backbone.encode_prompts([caption]).mean.float().cpu() for _, caption in items])
        own, rest = slice(0, None, 2), slice(1, None, 2)
        diagonal.append(Latents(*latent_statistics(mean[own] * scale, std[own] * scale)))
        centre, var, factor = latent_covariance(mean[own] * scale, std[own] * scale)
        assert factor is not None, f"{topic} has too few pictures"
        low_rank.append(Latents(centre, var, factor))
        captions = [caption for _, caption in items]
        words = CaptionWords.of(backbone.token_ids(captions[own]))
        known.append(Captions(caption_prototypes(text[own])[0], words))
        held.append((mean[rest] * scale, torch.full((len(text[rest]),), number)))
        texts += captions[rest]
        print(f"{topic}: {len(items)} pictures, rank {len(factor)}")
    statistics = {
        "diagonal": stack_statistics(diagonal),
        "low rank": stack_statistics(low_rank),
    }
    x_0, source = (torch.cat(part) for part in zip(*held, strict=True))
    return statistics, known, x_0, texts, source


@torch.no_grad()
def held_out(statistics: SourceStatistics, prior: Tensor, x_0: Tensor, source: Tensor) -> Held:
    """Densities of the held-out latents under the same noise at every knot."""
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    log_density = []
    for knot in KNOTS:
        a = torch.tensor(knot).sigmoid()
        x_t = a.sqrt() * x_0 + (1 - a).sqrt() * noise
        log_density.append(torch.cat([log_densities(statistics, x, a.expand(len(x))) for x in x_t.split(64)]))
    return Held(prior, source, torch.stack(log_density))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--backbone", default="nano")
    args = parser.parse_args()
    backbone = Backbone.load(args.backbone, device="cpu")
    statistics, known, x_0, texts, source = measure(args.pictures, backbone)
    features = backbone.prompt_features(texts)
    fit, test = slice(0, None, 2), slice(1, None, 2)

    def prior_of(word: float, prototype: float) -> Tensor:
        return prompt_prior(features, known, word_temperature=word, prototype_temperature=prototype)

    choices = {choice: prior_of(*choice) for choice in product(WORD, PROTOTYPE)}
    best = min(choices, key=lambda choice: log_loss(choices[choice][fit], source[fit]))
    prior = choices[best]
    flat = torch.full_like(prior, 1 / prior.shape[1])
    print(f"{'log-SNR':44}" + " ".join(f"{knot:7g}" for knot in KNOTS) + "    mean")
    report("uniform", torch.full((len(KNOTS),), log_loss(flat[test], source[test])))
    only = {"words alone": (best[0], math.inf), "prototypes alone": (math.inf, best[1]), "both": best}
    for name, (word, prototype) in only.items():
        loss = log_loss(prior_of(word, prototype)[test], source[test])
        report(f"{name}, T_w = {word:g}, T_c = {prototype:g}", torch.full((len(KNOTS),), loss))
    tables = {}
    for name, of in statistics.items():
        compare(f"{name}, uniform prior", held_out(of, flat, x_0, source))
        tables[name] = compare(f"{name}, prompt prior", held_out(of, prior, x_0, source))
    print("\n# for promptcdm/prompt_prior.py")
    print(f"WORD_TEMPERATURE = {best[0]:g}\nPROTOTYPE_TEMPERATURE = {best[1]:g}")
    print("# for promptcdm/router.py: fitted over the prompt prior, with low-rank statistics")
    print("POSTERIOR_TEMPERATURES: Temperatures = (")
    for knot, value in tables["low rank"]:
        print(f"    ({knot}, {value}),")
    print(")")
    print(f"# with diagonal statistics it would be {tables['diagonal']}")


if __name__ == "__main__":
    main()
