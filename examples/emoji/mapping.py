"""Which icon of which set shows which concept. Writes the mapping part of concepts.csv."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from icons import Emoji, IconSet, plain_codepoints, read_emoji
from sets import SETS

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
    text = text.replace("#", " hash ").replace("*", " asterisk ").replace("’", "").replace("'", "")
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


def _own(icon: str, set_name: str) -> Concept:
    label = re.sub(r"-(\d+|duo)(?=-|$)", "", icon).replace("-", " ")
    return Concept(icon, "", label, (), "own", set_name, {set_name: icon})


def map_sets(npm: Path, fixes: dict[tuple[str, str], str]) -> list[Concept]:
    """All concepts with their icons; `fixes` maps (set, icon) to a concept id, or to '' for none, by hand."""
    emoji = read_emoji(npm)
    sets = {s.name: IconSet.open(npm, s.name) for s in SETS}
    concepts = {
        e.codepoints: Concept(slug(e.label), e.codepoints, e.label, e.tags, e.group, e.subgroup)
        for e in emoji
    }
    by_id = {c.id: c for c in concepts.values()}
    if len(by_id) != len(concepts):
        raise ValueError("two emoji have the same concept id")
    for (set_name, icon), concept_id in fixes.items():
        if concept_id:
            by_id[concept_id].icons[set_name] = icon
    for picture_set in SETS:
        if picture_set.naming == "codepoint":
            _by_codepoints(sets[picture_set.name], concepts, picture_set.name)
    for concept in concepts.values():
        flat = concept.icons.get("fluent-emoji-flat")
        if flat in sets["fluent-emoji"].icons:
            concept.icons.setdefault("fluent-emoji", flat)
    names = _by_names(concepts.values(), emoji, sets)
    extra: dict[str, Concept] = {}
    for picture_set in SETS:
        if picture_set.naming not in ("name", "joined name", "own"):
            continue
        for icon in sets[picture_set.name].icons:
            if (picture_set.name, icon) in fixes:
                continue
            concept = names.get(joined(icon))
            if concept is not None:
                concept.icons.setdefault(picture_set.name, icon)
            elif picture_set.naming == "own" and not icon.endswith("-duo"):
                concept = extra.setdefault(icon, _own(icon, picture_set.name))
                concept.icons.setdefault(picture_set.name, icon)
    for concept in extra.values():
        if concept.id in by_id:
            concept.id = f"{concept.id}-icon"
    return [c for c in concepts.values() if c.icons] + list(extra.values())
