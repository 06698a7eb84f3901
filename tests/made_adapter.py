"""Small adapters with random tensors, for the tests of files, store and forgetting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from promptcdm.adapter import Adapter, Statistics, adapter_digest
from promptcdm.adapter_record import AdapterRecord, BackboneRecord
from promptcdm.caption_words import CaptionWords
from promptcdm.manifest import Manifest, ManifestItem, merkle_root

SHAPES = {"mid_block.attentions.0.proj_in": (6, 4), "down_blocks.0.resnets.0.conv1": (5, 4, 3, 3)}
BACKBONE = BackboneRecord(name="nano", digest="b" * 64, architecture="nano")


def random_lora(shapes: Mapping[str, tuple[int, ...]], *, rank: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """A LoRA for modules of these weight shapes, both halves drawn from a normal law of deviation 0.3."""
    generator = torch.Generator().manual_seed(seed)
    lora = {}
    for module, (out, *rest) in shapes.items():
        ones = (1,) * (len(rest) - 1)
        lora[f"unet.{module}.lora_A.weight"] = torch.randn(rank, *rest, generator=generator) * 0.3
        lora[f"unet.{module}.lora_B.weight"] = torch.randn(out, rank, *ones, generator=generator) * 0.3
    return lora


def random_prompt(widths: Mapping[str, int], *, tokens: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """Learned embeddings (tokens, width) for each text encoder."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(tokens, width, generator=generator) for name, width in widths.items()}


def random_statistics(*, seed: int = 0) -> Statistics:
    """Statistics of a source of 6 pictures with 4 latent channels and 2 prototypes of width 3."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.nn.functional.normalize(torch.randn(2, 3, generator=generator), dim=-1)
    mean = torch.randn(4, 8, 8, generator=generator)
    words = CaptionWords(torch.tensor([3, 7]), torch.tensor([6, 2]))
    return Statistics(6, mean, mean.abs() + 0.1, prototypes, torch.tensor([0.25, 0.75]), words)


def made_manifest(source: str) -> Manifest:
    """A manifest of 6 items whose digests follow from the source's name."""
    items = [
        ManifestItem(file=f"{n}.png", bytes=n, sha256=f"{n}{source}", pixels_sha256="p", caption_sha256="c")
        for n in range(6)
    ]
    return Manifest(
        source=source,
        license="MIT",
        author="Ann | <b>",
        origin="example.org",
        attribution="by Ann",
        items=items,
        merkle_root=merkle_root(items),
    )


def made_adapter(
    source: str = "birds",
    *,
    seed: int = 0,
    lora: dict[str, Tensor] | None = None,
    prompt: dict[str, Tensor] | None = None,
    trained: bool = True,
    **changes: Any,
) -> Adapter:
    """A sound adapter; `trained=False` leaves out statistics, manifest and log, as an import does."""
    lora = random_lora(SHAPES, seed=seed) if lora is None else lora
    prompt = prompt or {}
    statistics = random_statistics(seed=seed) if trained else None
    manifest = made_manifest(source) if trained else None
    facts: dict[str, Any] = {
        "source": source,
        "kind": "+".join(part for part, held in (("lora", lora), ("prompt", prompt)) if held),
        "unconditional": "backbone",
        "trigger": "",
        "backbone": BACKBONE,
        "settings": {"steps": 5, "learning_rate": 1e-3, "flip": False, "targets": "attention"},
        "sha256": adapter_digest(lora, prompt, statistics),
        "source_digest": manifest.merkle_root if manifest else "",
        "items": 6 if trained else 0,
        "license": "MIT",
        "author": "Ann | <b>",
        "origin": "example.org",
        "attribution": "by Ann",
        "versions": {"torch": "2"},
    }
    record = AdapterRecord(**(facts | changes))
    log = ({"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}) if trained else ()
    return Adapter(source, lora, prompt, statistics, record, manifest, log)
