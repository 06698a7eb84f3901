"""Which concepts the backbone never sees, which concepts no source sees, and which single pictures are held out.

All three are drawn by seed and written down in concepts.csv and withheld.json before anything is trained.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping

from mapping import Concept
from sets import BACKBONE_SETS, Cell

SEED = 2
LOW, HIGH = 0.20, 0.30
# The backbone keeps the commonest objects of the language: these subgroups are never drawn.
KEPT = frozenset({"animal-mammal", "food-fruit", "transport-ground"})
# Words that name a kind of a thing, not the thing: a label that holds one of them does not show it.
KIND_WORDS = frozenset(
    {"person", "man", "woman", "boy", "girl", "child", "label", "link", "seat", "wing", "star", "ring"}
)
# What the icon sets' own names call the things of a subgroup, where no label of it is that word.
KIN = {"phone": ("phone",), "time": ("clock",), "mail": ("letter",), "music": ("headset",)}
TEST_SHARE = 0.06
HELD_OUT_SHARE = 0.12


def main_topic(concept: Concept) -> str:
    """The topic whose quarter a concept counts in: emojibase's group, with flags counted among symbols."""
    return "symbols" if concept.group == "flags" else concept.group


def words(text: str) -> tuple[str, ...]:
    """Lower-case words, plural s taken off, so that `red apples` and `red apple` are the same."""
    found = re.findall(r"[a-z0-9]+", text.lower())
    return tuple(w[:-1] if len(w) > 3 and w.endswith("s") and not w.endswith("ss") else w for w in found)


def shows(label: str, names: Collection[tuple[str, ...]]) -> bool:
    """True where one of the names occurs in the label as a run of whole words."""
    own = words(label)
    runs = {own[i:j] for i in range(len(own)) for j in range(i + 1, len(own) + 1)}
    return any(name in runs for name in names)


def _withheld_with(concepts: Iterable[Concept], subgroups: Collection[str]) -> set[str]:
    concepts = list(concepts)
    chosen = {c.id for c in concepts if c.subgroup in subgroups}
    names = {words(c.label) for c in concepts if c.id in chosen}
    names -= {(w,) for w in KIND_WORDS}
    kin = names | {words(name) for g in subgroups for name in KIN.get(g, ())}
    return chosen | {c.id for c in concepts if shows(c.label, kin if c.group == "own" else names)}


def choose_withheld(concepts: Iterable[Concept], seed: int = SEED) -> tuple[list[str], set[str]]:
    """Whole subgroups, drawn until every main topic has 20 to 30 % withheld; returns them and the withheld concept ids.

    A concept elsewhere whose label contains a withheld concept's label is withheld too. Shares are of the concepts that
    the backbone's set noto has.
    """
    concepts = list(concepts)
    drawn = [c for c in concepts if "noto" in c.icons]
    topics: dict[str, Counter[str]] = defaultdict(Counter)
    for concept in drawn:
        topics[main_topic(concept)][concept.subgroup] += 1
    total = {t: sum(n.values()) for t, n in topics.items()}
    random_numbers = random.Random(seed)
    for _ in range(100_000):
        subgroups: list[str] = []
        for topic in sorted(topics):
            free = sorted(set(topics[topic]) - KEPT)
            random_numbers.shuffle(free)
            room = 0.26 * total[topic]
            for name in free:
                if topics[topic][name] <= room:
                    subgroups.append(name)
                    room -= topics[topic][name]
        withheld = _withheld_with(concepts, subgroups)
        count = Counter(main_topic(c) for c in drawn if c.id in withheld)
        if all(LOW <= count[t] / total[t] <= HIGH for t in total):
            return sorted(subgroups), withheld
    raise ValueError("no choice of subgroups gives every topic its quarter")


def choose_test(concepts: Iterable[Concept], withheld: Collection[str], seed: int = SEED) -> set[str]:
    """About 6 % of the emoji concepts, only such as noto has and the backbone sees, evenly over the main topics."""
    topics: dict[str, list[str]] = defaultdict(list)
    for concept in concepts:
        if "noto" in concept.icons and concept.id not in withheld:
            topics[main_topic(concept)].append(concept.id)
    random_numbers = random.Random(seed + 1)
    chosen: set[str] = set()
    for topic in sorted(topics):
        ids = sorted(topics[topic])
        chosen |= set(random_numbers.sample(ids, round(TEST_SHARE * len(ids) / 0.75)))
    return chosen


def choose_held_out(
    concepts: Iterable[Concept], test: Collection[str], clusters: Mapping[Cell, int], seed: int = SEED
) -> dict[str, list[str]]:
    """Concept id -> collections whose picture of it is held out; near-duplicate pictures go together.

    Clusters are drawn whole until about 12 % of the cells of concepts with at least three source collections are held
    out. Never drawn: clusters larger than six, and those with a picture of noto, which the judge is trained on.
    """
    groups: dict[int, list[Cell]] = defaultdict(list)
    for cell, number in clusters.items():
        groups[number].append(cell)
    wide = {c.id for c in concepts if len(set(c.icons) - set(BACKBONE_SETS)) >= 3} - set(test)
    eligible = [
        sorted(cells)
        for cells in groups.values()
        if len(cells) <= 6 and all(concept in wide and collection != "noto" for collection, concept in cells)
    ]
    goal = HELD_OUT_SHARE * sum(
        1 for collection, concept in clusters if concept in wide and collection != "noto"
    )
    eligible.sort()
    random.Random(seed + 2).shuffle(eligible)
    held: dict[str, list[str]] = defaultdict(list)
    count = 0
    for cells in eligible:
        if count >= goal:
            break
        for collection, concept in cells:
            held[concept].append(collection)
        count += len(cells)
    return {concept: sorted(names) for concept, names in sorted(held.items())}
