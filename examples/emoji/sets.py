"""The ten picture sets: who made them, under which licence, and how their names meet the concepts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# A picture of the table: collection, concept.
Cell = tuple[str, str]
Naming = Literal["codepoint", "flat names", "name", "joined name", "own"]


@dataclass(frozen=True)
class PictureSet:
    """One npm package of icons. `naming` says how an icon's name is taken to a concept."""

    name: str
    title: str
    author: str
    license: str
    origin: str
    naming: Naming

    @property
    def package(self) -> str:
        """The npm package's name."""
        return f"@iconify-json/{self.name}"

    @property
    def attribution(self) -> str:
        """One sentence, ready to be shown beside a picture."""
        return f"{self.title} by {self.author}, {self.license}, {self.origin}."


SETS: tuple[PictureSet, ...] = (
    PictureSet(
        "noto", "Noto Emoji", "Google", "Apache-2.0", "https://github.com/googlefonts/noto-emoji", "codepoint"
    ),
    PictureSet(
        "noto-v1",
        "Noto Emoji (v1)",
        "Google",
        "Apache-2.0",
        "https://github.com/googlefonts/noto-emoji",
        "name",
    ),
    PictureSet(
        "fxemoji",
        "Firefox OS Emoji",
        "Mozilla",
        "Apache-2.0",
        "https://github.com/mozilla/fxemoji",
        "joined name",
    ),
    PictureSet(
        "fluent-emoji",
        "Fluent Emoji",
        "Microsoft",
        "MIT",
        "https://github.com/microsoft/fluentui-emoji",
        "flat names",
    ),
    PictureSet(
        "fluent-emoji-flat",
        "Fluent Emoji Flat",
        "Microsoft",
        "MIT",
        "https://github.com/microsoft/fluentui-emoji",
        "codepoint",
    ),
    PictureSet(
        "twemoji",
        "Twemoji",
        "Twitter and other contributors",
        "CC-BY-4.0",
        "https://github.com/jdecked/twemoji",
        "codepoint",
    ),
    PictureSet(
        "emojione", "Emoji One", "Emoji One", "CC-BY-4.0", "https://github.com/EmojiTwo/emojitwo", "name"
    ),
    PictureSet(
        "streamline-kameleon-color",
        "Kameleon color icons",
        "Streamline",
        "CC-BY-4.0",
        "https://github.com/webalys-hq/streamline-vectors",
        "own",
    ),
    PictureSet(
        "openmoji",
        "OpenMoji",
        "OpenMoji",
        "CC-BY-SA-4.0",
        "https://github.com/hfg-gmuend/openmoji",
        "codepoint",
    ),
    PictureSet(
        "flat-color-icons",
        "Flat Color Icons",
        "Icons8",
        "MIT",
        "https://github.com/icons8/flat-Color-icons",
        "own",
    ),
)

SET_NAMES: tuple[str, ...] = tuple(s.name for s in SETS)
BACKBONE_SETS: tuple[str, ...] = ("noto", "flat-color-icons")
SOURCE_SETS: tuple[str, ...] = tuple(n for n in SET_NAMES if n not in BACKBONE_SETS)


def picture_set(name: str) -> PictureSet:
    """The set of that name; KeyError with the known names otherwise."""
    for candidate in SETS:
        if candidate.name == name:
            return candidate
    raise KeyError(f"no picture set {name!r}; known: {', '.join(SET_NAMES)}")
