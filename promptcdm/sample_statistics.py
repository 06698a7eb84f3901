"""What a router may know of an imported adapter, from samples: pictures with captions, or captions alone.

Its training pictures are not at hand, and nothing in its file says what they looked like. Samples stand for them: some
of them, pictures that were made with it, or captions, of which it draws the pictures itself. The router then weighs it
by these samples, and is as right as they are typical.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch

from promptcdm.adapter import Adapter, Statistics, adapter_digest
from promptcdm.backbone import Backbone
from promptcdm.encoded_source import encode_source, statistics_of, trained_statistics
from promptcdm.errors import BadInput
from promptcdm.generate import draw_pictures
from promptcdm.settings import GenerateSettings, TrainSettings
from promptcdm.source import Source

_ENCODED = 8  # pictures at once


def with_samples(adapter: Adapter, samples: Path | str, backbone: Backbone) -> Adapter:
    """The adapter with statistics from a text file of captions, one a line, or else from pictures with captions.

    Raises BadSource for pictures that a source could not have, BadInput for a file without captions.
    """
    if str(samples).endswith(".txt"):
        return with_captions(adapter, _captions(Path(samples)), backbone)
    return with_pictures(adapter, Source.open(samples, adapter.source), backbone)


def with_pictures(adapter: Adapter, samples: Source, backbone: Backbone) -> Adapter:
    """The adapter with statistics from these pictures, cropped to the backbone's square."""
    data = encode_source(samples, backbone, TrainSettings(), "")
    statistics = trained_statistics(samples, data, backbone)
    return _with(
        adapter, statistics, {"samples": len(samples), "samples_sha256": samples.manifest().merkle_root}
    )


def with_captions(adapter: Adapter, captions: Sequence[str], backbone: Backbone) -> Adapter:
    """The adapter with statistics from the pictures that it draws itself of these captions, one each."""
    pictures = draw_pictures(
        captions, [adapter], backbone=backbone, settings=GenerateSettings(router="uniform")
    ).images
    parts = [
        backbone.encode_images(pictures[start : start + _ENCODED])
        for start in range(0, len(pictures), _ENCODED)
    ]
    mean, std = (torch.cat(each) for each in zip(*parts, strict=True))
    digest = sha256("\n".join(captions).encode()).hexdigest()
    return _with(
        adapter,
        statistics_of(captions, [(mean, std)], pictures, backbone),
        {"drawn_samples": len(captions), "samples_sha256": digest},
    )


def _captions(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"samples {path} cannot be read: {error}") from error
    captions = [" ".join(line.split()) for line in lines if line.strip()]
    if not captions:
        raise BadInput(f"samples {path} holds no caption; give one a line")
    return captions


def _with(adapter: Adapter, statistics: Statistics, facts: Mapping[str, str | int]) -> Adapter:
    digest = adapter_digest(adapter.lora, adapter.prompt, statistics)
    record = adapter.record.model_copy(
        update={"sha256": digest, "settings": {**adapter.record.settings, **facts}}
    )
    return replace(adapter, statistics=statistics, record=record)
