"""What a person should know of sources before any model is loaded: one list with file names.

Errors are what training refuses, and a picture that two sources hold with the same pixels: to forget one source would
leave it in the other. Warnings are what may be meant: copies within a source, near copies, captions that are cut.

Two pictures are near copies where their looks (8x8 mean colours, `picture.look`) differ by at most NEAR levels of 255,
root mean square, and by at most NEAR_SHARE of the contrast of the plainer one, so that two pages of text are not. Of
960 shipped pictures the nearest two that differ are 9.5 apart; halved they are at most 2.9 from themselves, as JPEG of
quality 50 most often 4.5. Mirrored, turned and cropped copies are not found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from promptcdm.errors import BadInput, BadSource
from promptcdm.manifest import Manifest
from promptcdm.source import Item, Source
from promptcdm.versions import source_of

NEAR = 6.0
NEAR_SHARE = 0.25
_ROWS = 512  # compared at a time


class Tokenizer(Protocol):
    """What is used of a transformers CLIPTokenizer."""

    model_max_length: int

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Mapping[str, list[list[int]]]: ...

    def decode(self, ids: list[int]) -> str:
        """Text of token ids."""


@dataclass(frozen=True)
class Findings:
    """Lines, each with the source's name and the file's."""

    pictures: Mapping[str, int]  # by source, of those that can be trained on
    errors: tuple[str, ...]
    warnings: tuple[str, ...]


def preflight(
    places: Sequence[Path | str],
    *,
    tokenizer: Tokenizer | None = None,
    trained: Mapping[str, Manifest] | None = None,
) -> Findings:
    """Check every source and compare each with the others and with what adapters were trained on.

    Training opens one source and calls nothing of this. Without a tokenizer captions are not measured. `trained` holds
    manifests by NAME or NAME@DIGEST; a source's own are left out. Raises BadInput where two sources have one name.
    """
    sources: list[Source] = []
    pictures: dict[str, int] = {}
    errors: list[str] = []
    warnings: list[str] = []
    for place in places:
        try:
            source, problems = Source.check(place)
        except BadSource as error:
            errors += [f"{place}: {problem}" for problem in error.problems or (str(error),)]
            continue
        if any(source.name == other.name for other in sources):
            raise BadInput(f"two sources are named {source.name}; a name is a folder's, so rename one")
        errors += [f"{place}: {problem}" for problem in problems]
        if not problems:
            pictures[source.name] = len(source)
        sources.append(source)  # what is sound of it is compared in any case: one list, not one after another
        warnings += [f"{source.name}: {note}" for note in source.notes]
        if tokenizer is not None and len(source):
            warnings += long_captions(source, tokenizer)
    copies, near = compare(sources)
    for (one, other), line in copies:
        (warnings if one == other else errors).append(line)
    warnings += near
    errors += _in_manifests(sources, trained or {})
    return Findings(pictures, tuple(errors), tuple(warnings))


def long_captions(
    source: Source, tokenizer: Tokenizer, trigger: str | None = None, soft_tokens: int = 0
) -> list[str]:
    """A line for each caption that is cut, with the text that is lost.

    The trigger (the source's own where None) and the learned tokens of a soft prompt take places too.
    """
    room = tokenizer.model_max_length - 2 - soft_tokens
    trigger = source.trigger if trigger is None else trigger
    captions = [f"{trigger} {item.caption}".strip() for item in source.items]
    lines = []
    for item, ids in zip(
        source.items, tokenizer(captions, add_special_tokens=False)["input_ids"], strict=True
    ):
        if len(ids) > room:
            cut = " ".join(tokenizer.decode(ids[room:]).split())
            lines.append(f'{source.name}/{item.file}: {len(ids)} tokens, {room} are read; cut is "{cut}"')
    return lines


def compare(sources: Sequence[Source]) -> tuple[list[tuple[tuple[str, str], str]], list[str]]:
    """Copies of the same pixels, and near copies, within and across sources."""
    pairs = [(source.name, item) for source in sources for item in source.items]
    copies: list[tuple[tuple[str, str], str]] = []
    first: dict[str, dict[str, Item]] = {}
    for name, item in pairs:
        held = first.setdefault(item.pixels_sha256, {})
        for other, twin in held.items():
            copies.append(((other, name), f"{name}/{item.file}: the same pixels as {other}/{twin.file}"))
        held.setdefault(name, item)
    near = [
        f"{a}/{one.file}: looks like {b}/{two.file}"
        for (a, one), (b, two) in ((pairs[i], pairs[j]) for i, j in _near(pairs))
    ]
    return copies, near


def _near(pairs: Sequence[tuple[str, Item]]) -> list[tuple[int, int]]:
    """Indices i < j of near copies that are no exact ones."""
    if not pairs:
        return []
    looks = np.stack([np.frombuffer(item.look, np.uint8) for _, item in pairs]).astype(np.float32)  # (n, 192)
    contrast = looks.reshape(len(looks), -1, 3).std(1).mean(1)  # (n,)
    squares = np.square(looks).sum(1)
    found = []
    for start in range(0, len(looks), _ROWS):
        rows = slice(start, start + _ROWS)
        distance = squares[rows, None] + squares - 2 * looks[rows] @ looks.T
        distance = np.sqrt(np.maximum(distance, 0) / looks.shape[1])
        limit = np.minimum(NEAR, NEAR_SHARE * np.minimum(contrast[rows, None], contrast))
        for i, j in np.argwhere(distance <= limit):
            one, two = start + int(i), int(j)
            if one < two and pairs[one][1].pixels_sha256 != pairs[two][1].pixels_sha256:
                found.append((one, two))
    return found


def _in_manifests(sources: Sequence[Source], trained: Mapping[str, Manifest]) -> list[str]:
    held = {
        (name, item.pixels_sha256): item.file for name, manifest in trained.items() for item in manifest.items
    }
    return [
        f"{source.name}/{item.file}: the same pixels as {held[name, item.pixels_sha256]}, which {name} was trained on"
        for source in sources
        for item in source.items
        for name in trained
        if source_of(name) != source.name and (name, item.pixels_sha256) in held
    ]
