"""A source: one owner's pictures with captions, and nothing outside them.

    birds/
      a.png  b.jpg ...
      metadata.jsonl          {"file_name": "a.png", "text": "a red bird"}   (or a.txt beside a.png)
      source.toml             license, author, origin, attribution, trigger  (each may be left out)

docs/data.md has the other layouts; all give the same `Source`. `Source.open` decodes every picture and reads
every caption, and lists every problem at once, before any model is loaded. What was checked is what is used: a
file that changes afterwards is an error.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from PIL import Image

from promptcdm.captions import Captions
from promptcdm.errors import BadInput, BadSource
from promptcdm.layouts import find_pictures
from promptcdm.manifest import Manifest, ManifestItem, merkle_root
from promptcdm.picture import BadPicture, Look, decode_picture, look, pixels_digest
from promptcdm.places import Pictures, Place, Unreadable, is_one_line, open_place, place_name, read_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
NO_LICENSE = "NOASSERTION"
SOURCE_TOML = "source.toml"
_KEYS = ("license", "author", "origin", "attribution", "trigger")
# A name is also a file name, NAME.safetensors: loaders skip or prefer files whose names hold some of these,
# and Windows keeps the last group for devices.
_RESERVED = ("router", "learned_embeds", "pytorch_lora_weights", "con", "prn", "aux", "nul")
_RESERVED_PARTS = ("scheduler", "optimizer", "checkpoint", "pytorch_lora_weights", "learned_embeds")
_DEVICE = re.compile(r"(com|lpt)[0-9]")


def check_name(name: str) -> None:
    """Raise BadInput unless `name` can name a source."""
    if not NAME.fullmatch(name):
        raise BadInput(
            f"source name {ascii(name)[:80]}: use 1 to 64 of a-z, 0-9, - and _, with a letter or digit first"
        )
    parts = [part for part in _RESERVED_PARTS if part in name]
    if parts or name in _RESERVED or _DEVICE.fullmatch(name):
        raise BadInput(f"source name {name!r}: {parts[0] if parts else name} is reserved; choose another")


@dataclass(frozen=True)
class Item:
    """One picture with its caption. `file` is relative to the folder, with "/"; digests are sha256 in hex."""

    file: str
    path: Path | str  # of the file; in a shard or table its path and then the member or row; or a URL
    caption: str
    bytes: int
    sha256: str  # of the file
    pixels_sha256: str  # see picture.pixels_digest
    width: int  # upright
    height: int
    look: Look = field(repr=False)  # see picture.look
    repeats: int = 1  # what kohya's folder name asks for


@dataclass(frozen=True)
class Source:
    """Checked pictures and captions, with who made them and under which licence."""

    name: str
    folder: Path | str  # what was opened: a folder, file or URL
    items: tuple[Item, ...]  # sorted by file
    license: str  # SPDX identifier, or NOASSERTION
    author: str
    origin: str
    attribution: str
    trigger: str
    notes: tuple[str, ...]  # not errors, but a person should read them
    pictures: Pictures = field(repr=False, compare=False)  # what opens them

    @classmethod
    def open(
        cls,
        folder: Path | str,
        name: str | None = None,
        *,
        license: str | None = None,
        author: str | None = None,
        origin: str | None = None,
        attribution: str | None = None,
        trigger: str | None = None,
    ) -> Source:
        """Read and check all of a folder, file or URL; `name` defaults to its own, a keyword wins over source.toml.

        Raises BadSource with every problem of every file in `problems`.
        """
        given = dict(zip(_KEYS, (license, author, origin, attribution, trigger), strict=True))
        source, problems = cls.check(folder, name, given)
        if problems:
            raise BadSource(_summary(folder, problems), problems)
        return source

    @classmethod
    def check(
        cls, folder: Path | str, name: str | None = None, facts: Mapping[str, str | None] | None = None
    ) -> tuple[Source, list[str]]:
        """What is sound of it, and every problem of every file: a list to read, where `open` refuses to train.

        `facts` are the keywords of `open`. Raises BadSource where nothing can be read.
        """
        place = open_place(folder)
        name = place_name(folder) if name is None else name
        problems = _name_problems(name)
        known = _read_source_toml(place, problems)
        known |= {key: value for key, value in (facts or {}).items() if value is not None}
        problems += [f"{key}: must be one line of text" for key in _KEYS if not is_one_line(known[key])]
        pictures, captions = find_pictures(place)
        items = _check_items(pictures, captions)
        problems += captions.problems
        if not captions.found and not captions.problems:
            problems.append("holds no picture (PNG, JPEG or WebP)")
        notes = (*captions.notes, *_notes(items, known))
        known["license"] = known["license"].strip() or NO_LICENSE
        source = cls(name=name, folder=folder, items=tuple(items), notes=notes, pictures=pictures, **known)
        return source, problems

    def __len__(self) -> int:
        return len(self.items)

    def picture(self, index: int) -> Image.Image:
        """Picture `index` as upright RGB (see picture.py). Raises BadSource if it changed since `open`."""
        item = self.items[index]
        try:
            data = read_file(self.pictures, item.file)
        except Unreadable as error:
            raise BadSource(f"{item.path}: changed after it was checked: {error}", [item.file]) from error
        if hashlib.sha256(data).hexdigest() != item.sha256:
            raise BadSource(f"{item.path}: changed after it was checked; start again", [item.file])
        return decode_picture(data)

    def manifest(self) -> Manifest:
        """Digests of every item, the licence, and the digest of the whole: no picture, no caption."""
        return self._manifest

    @cached_property
    def _manifest(self) -> Manifest:
        items = [
            ManifestItem(
                file=item.file,
                bytes=item.bytes,
                sha256=item.sha256,
                pixels_sha256=item.pixels_sha256,
                caption_sha256=hashlib.sha256(item.caption.encode()).hexdigest(),
            )
            for item in self.items
        ]
        return Manifest(
            source=self.name,
            license=self.license,
            author=self.author,
            origin=self.origin,
            attribution=self.attribution,
            items=items,
            merkle_root=merkle_root(items),
        )


def _name_problems(name: str) -> list[str]:
    try:
        check_name(name)
    except BadInput as error:
        return [f"{error} (--source NAME)"]
    return []


def _read_source_toml(place: Place, problems: list[str]) -> dict[str, str]:
    facts = dict.fromkeys(_KEYS, "")
    if not place.holds(SOURCE_TOML):
        return facts
    try:
        text = read_file(place, SOURCE_TOML).decode("utf-8-sig")
        read = tomllib.loads(text.replace("\r\n", "\n"))
    except Unreadable as error:
        problems.append(f"{SOURCE_TOML}: {error}")
        return facts
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        problems.append(f"{SOURCE_TOML}: cannot be read: {' '.join(str(error).split())[:160]}")
        return facts
    for key, value in read.items():
        if key not in _KEYS:
            problems.append(f"{SOURCE_TOML}: unknown key {key!a}; known are {', '.join(_KEYS)}")
        elif not isinstance(value, str):
            problems.append(f"{SOURCE_TOML}: {key} must be text in quotes")
        else:
            facts[key] = value
    return facts


def _check_items(pictures: Pictures, captions: Captions) -> list[Item]:
    items = []
    for file, caption in sorted(captions.found.items()):
        try:
            data = read_file(pictures, file)
            image = decode_picture(data)
        except (BadPicture, Unreadable) as error:
            captions.problems.append(f"{file}: {error}")
        else:
            item = Item(
                file=file,
                path=pictures.where(file),
                caption=caption,
                bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                pixels_sha256=pixels_digest(image),
                width=image.width,
                height=image.height,
                look=look(image),
                repeats=captions.repeats.get(file, 1),
            )
            items.append(item)
    return items


def _notes(items: list[Item], facts: Mapping[str, str]) -> list[str]:
    notes = []
    if not facts["license"].strip():
        notes.append(f"no licence is named: recorded as {NO_LICENSE}; give it in {SOURCE_TOML} or --license")
    copies = len(items) - len({item.pixels_sha256 for item in items})
    if copies:
        notes.append(f"{copies} of {len(items)} pictures are exact copies of others")
    repeats = sorted({item.repeats for item in items})
    if len(repeats) > 1:
        asked = ", ".join(map(str, repeats))
        notes.append(f"kohya's repeats {asked}: a picture is trained on as often as its folder's name says")
    return notes


def _summary(folder: Path | str, problems: list[str]) -> str:
    if len(problems) == 1:
        return f"{folder}: {problems[0]}"
    return f"{folder}: {len(problems)} problems, the first: {problems[0]}"
