"""Which icon of which set shows which concept. Writes the mapping part of concepts.csv."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from icons import Emoji, IconSet, plain_codepoints, read_emoji
from sets import SETS, PictureSet

TONE = re.compile(r"1f3f[b-f]")
TONE_NAME = re.compile(r"-(light|medium-light|medium|medium-dark|dark)(-skin-tone)?(-|$)|skin-tone")


@dataclass
class Concept:
    """One idea, and the icon that shows it in each set that has one."""

    id: str
    codepoints: str
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str
    icons: dict[str, str] = field(default_factory=dict)


def slug(text: str) -> str:
    """Lower-case ASCII words joined by dashes; # and * are spelled out, as their keycaps would be empty."""
    text = text.replace("#", " hash ").replace("*", " asterisk ").replace("\u2019", "").replace("'", "")
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")


def joined(name: str) -> str:
    """A name with everything but letters and digits taken out: `red-apple` and `redapple` meet here."""
    return slug(name).replace("-", "")


def _by_names(
    concepts: Iterable[Concept], emoji: Iterable[Emoji], sets: dict[str, IconSet]
) -> dict[str, Concept]:
    """Every known spelling -> concept; labels win over icon names, these over short codes and Unicode names."""
    names: dict[str, Concept] = {}
    concepts = list(concepts)
    for concept in concepts:
        names.setdefault(joined(concept.label), concept)
    for set_name in ("noto", "twemoji", "fluent-emoji-flat", "openmoji"):
        back = {c.icons[set_name]: c for c in concepts if set_name in c.icons}
        for icon, concept in back.items():
            names.setdefault(joined(icon), concept)
        for alias, icon in sets[set_name].aliases.items():
            if icon in back:
                names.setdefault(joined(alias), back[icon])
    by_code = {c.codepoints: c for c in concepts}
    for entry in emoji:
        for other in entry.other_names:
            names.setdefault(joined(other), by_code[entry.codepoints])
    return names


def _by_codepoints(icon_set: IconSet, concepts: dict[str, Concept], set_name: str) -> None:
    for codepoints, icon in icon_set.chars.items():
        concept = concepts.get(plain_codepoints(codepoints))
        icon = icon_set.aliases.get(icon, icon)
        if concept is not None and icon in icon_set.icons:
            concept.icons.setdefault(set_name, icon)


def _own(icon: str, set_name: str, label: str) -> Concept:
    label = label or re.sub(r"-\d+(?=-|$)", "", icon).replace("-", " ")
    return Concept(slug(label), "", label, (), "own", set_name, {})


@dataclass(frozen=True)
class Fix:
    """A choice by hand for one icon: the concept it shows, the label of a concept of its own, or neither: left out."""

    concept: str
    label: str


def map_sets(npm: Path, fixes: Mapping[tuple[str, str], Fix]) -> list[Concept]:
    """All concepts with their icons; `fixes` maps (set, icon) to choices made by hand."""
    emoji = read_emoji(npm)
    sets = {s.name: IconSet.open(npm, s.name) for s in SETS}
    concepts = {
        e.codepoints: Concept(slug(e.label), e.codepoints, e.label, e.tags, e.group, e.subgroup)
        for e in emoji
    }
    by_id = {c.id: c for c in concepts.values()}
    if len(by_id) != len(concepts):
        raise ValueError("two emoji have the same concept id")
    for (set_name, icon), fix in fixes.items():
        if fix.concept:
            by_id[fix.concept].icons[set_name] = icon
    for picture_set in SETS:
        if picture_set.naming == "codepoint":
            _by_codepoints(sets[picture_set.name], concepts, picture_set.name)
    for concept in concepts.values():
        flat = concept.icons.get("fluent-emoji-flat")
        if flat in sets["fluent-emoji"].icons:
            concept.icons.setdefault("fluent-emoji", flat)
    names = _by_names(concepts.values(), emoji, sets)
    for picture_set in SETS:
        if picture_set.naming in ("name", "joined name", "own"):
            _by_icon_names(picture_set, sets[picture_set.name], names, by_id, fixes)
    return sorted(
        (c for c in by_id.values() if c.icons), key=lambda c: (c.group == "own", c.codepoints, c.id)
    )


def _by_icon_names(
    picture_set: PictureSet,
    icon_set: IconSet,
    names: Mapping[str, Concept],
    by_id: dict[str, Concept],
    fixes: Mapping[tuple[str, str], Fix],
) -> None:
    """Gives the set's icons to the concepts of their names; sets that keep own names get own concepts for the rest."""
    for icon in icon_set.icons:
        fix = fixes.get((picture_set.name, icon), Fix("", ""))
        if (picture_set.name, icon) in fixes and not fix.label:
            continue
        concept = None if fix.label else names.get(joined(icon))
        if concept is None and picture_set.naming == "own" and not icon.endswith("-duo"):
            own = _own(icon, picture_set.name, fix.label)
            if own.id in by_id and by_id[own.id].group != "own":
                own.id = f"{own.id}-icon"
            concept = by_id.setdefault(own.id, own)
        if concept is not None:
            concept.icons.setdefault(picture_set.name, icon)
