"""Reading the npm packages: SVG text of each icon, and emojibase's labels and topics."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class IconSet:
    """An iconify package: `icons` name -> body data, `aliases` other name -> name, `chars` codepoints -> name."""

    icons: dict[str, dict[str, Any]]
    aliases: dict[str, str]
    chars: dict[str, str]
    width: float
    height: float

    @classmethod
    def open(cls, npm: Path, name: str) -> IconSet:
        """Reads `@iconify-json/NAME` below the node_modules folder `npm`.

        A turned or mirrored alias is a picture of its own and becomes an icon.
        """
        folder = npm / "@iconify-json" / name
        data = _json(folder / "icons.json")
        icons = {n: d for n, d in data["icons"].items() if not d.get("hidden")}
        aliases = {}
        for alias, entry in data.get("aliases", {}).items():
            parent = icons.get(entry["parent"])
            if parent is None:
                continue
            if len(entry) == 1:
                aliases[alias] = entry["parent"]
            elif set(entry) == {"parent", "hFlip"}:
                icons[alias] = {**parent, "hFlip": entry["hFlip"]}
        chars_file = folder / "chars.json"
        chars = _json(chars_file) if chars_file.exists() else {}
        return cls(icons, aliases, chars, data.get("width", 16), data.get("height", 16))

    def svg(self, name: str, size: int) -> str:
        """A square SVG of `size` pixels with the icon centred in it."""
        icon = self.icons[name]
        left, top = icon.get("left", 0), icon.get("top", 0)
        width, height = icon.get("width", self.width), icon.get("height", self.height)
        body = icon["body"]
        if icon.get("hFlip"):
            body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{size}" '
            f'height="{size}" viewBox="{left} {top} {width} {height}" preserveAspectRatio="xMidYMid meet">{body}</svg>'
        )


@dataclass(frozen=True)
class Emoji:
    """One emoji of emojibase: its codepoints (lower case, joined by dashes, without variation selectors) and words."""

    codepoints: str
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str
    other_names: tuple[str, ...]


def plain_codepoints(text: str) -> str:
    """Codepoints in lower case without leading zeros and without the variation selector fe0f."""
    return "-".join(p.lstrip("0") for p in text.lower().split("-") if p != "fe0f")


def read_emoji(npm: Path) -> list[Emoji]:
    """All emoji of emojibase in their own order, without skin tones, hair parts, letters and flags of places."""
    folder = npm / "emojibase-data"
    meta = _json(folder / "meta" / "groups.json")
    unicode_names = _json(folder / "meta" / "unicode-names.json")
    shortcodes = [
        _json(folder / "en" / "shortcodes" / f"{n}.json") for n in ("github", "joypixels", "emojibase")
    ]
    found = []
    for entry in _json(folder / "en" / "data.json"):
        group = meta["groups"].get(str(entry.get("group")))
        subgroup = meta["subgroups"].get(str(entry.get("subgroup")))
        if group in (None, "component") or subgroup in ("country-flag", "subdivision-flag"):
            continue
        code = entry["hexcode"]
        names = [unicode_names.get(code) or unicode_names.get(code.replace("-FE0F", "")) or ""]
        for table in shortcodes:
            value = table.get(code, [])
            names += [value] if isinstance(value, str) else value
        other = tuple(dict.fromkeys(n for n in names if n))
        tags = tuple(entry.get("tags", ()))
        found.append(Emoji(plain_codepoints(code), entry["label"], tags, group, subgroup, other))
    return sorted(found, key=lambda e: e.codepoints)
