"""The sources of a run: pictures to train on, pictures held out, and which ideas each has.

    FOLDER/NAME/            an image folder a source; of its metadata.jsonl, `concept` and `label` are read too
    FOLDER/heldout/NAME/    pictures of it that no source trains on
    FOLDER/backbone/        may be there: what the backbone draws, for systems in which it is a source without weights

An idea is a concept with its name in words. Its part, validation or test, follows from its concept alone, for pictures
and prompts alike: what a choice is made on is in no final figure.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from paper.plan import EXAMPLES, Plan
from promptcdm.errors import BadInput
from promptcdm.shipped import shipped
from promptcdm.source import Source

sys.path.append(str(EXAMPLES / "emoji"))

from captions import with_article  # type: ignore[import-not-found,unused-ignore]

VALIDATION_SHARE = 4  # one concept of four
BACKBONE = "backbone"  # the source that is the backbone itself


@dataclass(frozen=True)
class Row:
    """What a folder says of one picture."""

    file: str
    text: str
    concept: str
    label: str


@dataclass
class Idea:
    """A concept, and whose pictures show it."""

    concept: str
    about: str  # in words, with an article: "a red apple"
    noun: str
    withheld: bool  # from the backbone
    trained: set[str] = field(default_factory=set)  # sources that train on it
    held_out: dict[str, str] = field(default_factory=dict)  # source: its caption of a picture held out
    captions: set[str] = field(default_factory=set)  # of all pictures that are trained on

    @property
    def part(self) -> str:
        """validation or test."""
        return part_of(self.concept)


def part_of(concept: str) -> str:
    """validation for one concept of four, else test."""
    number = int.from_bytes(hashlib.sha256(concept.encode()).digest()[:4], "big")
    return "validation" if number % VALIDATION_SHARE == 0 else "test"


def source_names(plan: Plan) -> tuple[str, ...]:
    """The sources of the plan, sorted. Raises BadInput where a folder is missing, or fewer than two are there."""
    root = Path(plan.sources)
    if not root.is_dir():
        raise BadInput(f"{root}: no such folder; examples/emoji/build.py makes one, or give --sources")
    there = {path.name for path in root.iterdir() if (path / "metadata.jsonl").is_file()}
    names = plan.names or tuple(there - {"scenes", BACKBONE})
    missing = sorted(set(names) - there)
    if missing or len(names) < 2:
        raise BadInput(
            f"{root} holds {', '.join(sorted(there)) or 'no source'}; {missing or 'two sources'} needed"
        )
    return tuple(sorted(names))


def backbone_folder(plan: Plan) -> Path | None:
    """The pictures and captions of what the backbone draws; None where there are none."""
    folder = Path(plan.sources) / BACKBONE
    return folder if (folder / "metadata.jsonl").is_file() else None


class Opened(Mapping[str, Source]):
    """Sources by name, each opened and checked when it is first asked for: a worker that trains one reads one."""

    def __init__(self, root: Path, names: Collection[str]) -> None:
        self.root, self._names = root, tuple(names)
        self._opened: dict[str, Source] = {}

    def __getitem__(self, name: str) -> Source:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._opened:
            self._opened[name] = Source.open(self.root / name, name)
        return self._opened[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def size(self, name: str) -> int:
        """Pictures of a source, told by its metadata alone."""
        return len(read_rows(self.root / name))


def open_sources(plan: Plan) -> Opened:
    """Every source."""
    return Opened(Path(plan.sources), source_names(plan))


def open_held_out(plan: Plan) -> Opened:
    """The held-out pictures of every source that has some."""
    root = Path(plan.sources) / "heldout"
    return Opened(root, [n for n in source_names(plan) if (root / n / "metadata.jsonl").is_file()])


def read_rows(folder: Path) -> list[Row]:
    """The lines of a metadata.jsonl; without a concept, the caption is one of its own."""
    if not (folder / "metadata.jsonl").is_file():
        return []
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line]
    return [Row(r["file_name"], r["text"], r.get("concept", r["text"]), r.get("label", "")) for r in rows]


def ideas_of(plan: Plan) -> dict[str, Idea]:
    """Every idea of the sources by concept, sorted; with `plan.nouns`, only those that it lists, by its noun."""
    root, found = Path(plan.sources), dict[str, Idea]()
    nouns, seen = _nouns(plan), seen_by(plan.backbone)
    for name in source_names(plan):
        for held, folder in ((False, root / name), (True, root / "heldout" / name)):
            for row in read_rows(folder):
                if nouns is None or row.concept in nouns:
                    _note(found, row, name, held, nouns or {}, seen)
    return dict(sorted(found.items()))


def _note(
    found: dict[str, Idea],
    row: Row,
    source: str,
    held: bool,
    nouns: Mapping[str, str],
    seen: Collection[str] | None,
) -> None:
    noun = nouns.get(row.concept) or row.label
    about = with_article(noun) if noun else row.text
    withheld = seen is not None and row.concept not in seen
    idea = found.setdefault(row.concept, Idea(row.concept, about, noun or row.text, withheld))
    if held:
        idea.held_out.setdefault(source, row.text)
    else:
        idea.trained.add(source)
        idea.captions.add(row.text)


def seen_by(backbone: str) -> frozenset[str] | None:
    """The concepts that a backbone was trained on, where its folder says so; None: all may be known to it."""
    folder = shipped("nano") if backbone == "nano" else Path(backbone)
    path = folder / "concepts.json"
    return frozenset(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _nouns(plan: Plan) -> dict[str, str] | None:
    if not plan.nouns:
        return None
    with Path(plan.nouns).open(encoding="utf-8", newline="") as file:
        return {row["concept"]: row["noun"] for row in csv.DictReader(file)}
