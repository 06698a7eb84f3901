"""The prompts, drawn by seed before anything is trained; no prompt names a source.

    wording         an idea that backbone and sources know, in a wording that no source's caption of it has
    source-concept  one that a source has a picture of, held out, and another source trains on
    concept         one that no source trains on and the backbone knows
    withheld        one that the backbone never saw: only the sources teach it
    joined          ideas of two sources in one scene, where possible none that the other one trains on

`python eval/paper/prompts.py PLAN` writes the committed file of a plan; `truth` names the source whose held-out picture
or whose training pictures the prompt is about.
"""

from __future__ import annotations

import csv
import io
import random
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from paper.plan import PLANS, STRATA, Plan
from paper.sources import Idea, ideas_of, source_names
from promptcdm.errors import BadInput
from promptcdm.tensorfile import write_bytes

TEMPLATES = ("{}", "a picture of {}", "a drawing of {}", "an icon of {}", "an emoji of {}")
JOINTS = ("{} and {}", "{} to the left of {}", "{} above {}")
PARTS = ("validation", "test")


@dataclass(frozen=True)
class Prompt:
    """One line of the file."""

    id: str
    part: str  # validation or test
    stratum: str
    text: str  # what is drawn
    about: str  # the same without "a picture of": what questions are made on
    concepts: str  # with spaces between
    truth: str  # source, or the sources of a joined prompt with a space between

    @property
    def sources(self) -> list[str]:
        """The sources that it is about."""
        return self.truth.split()


def make_prompts(plan: Plan) -> list[Prompt]:
    """All prompts of a plan, from its folders and its seed."""
    draw = random.Random(f"prompts {plan.seed}")
    ideas = list(ideas_of(plan).values())
    found = []
    for part in PARTS:
        count = getattr(plan.counts, part)
        own = [idea for idea in ideas if idea.part == part]
        for stratum in STRATA:
            number = count * 2 if stratum == "joined" else count
            drawn = [idea for idea in own if _IN[stratum](idea)]
            draw.shuffle(drawn)
            lines = (
                _joined(drawn, number, draw) if stratum == "joined" else _single(stratum, drawn, count, draw)
            )
            found += [
                Prompt(f"{part[0]}-{stratum}-{n:03d}", part, stratum, *line)
                for n, line in enumerate(lines[:count])
            ]
    _check_names(found, source_names(plan))
    return found


_IN: Mapping[str, Callable[[Idea], bool]] = {
    "wording": lambda i: bool(i.trained) and not i.held_out and not i.withheld,
    "source-concept": lambda i: bool(i.trained and i.held_out) and not i.withheld,
    "concept": lambda i: not i.trained and not i.withheld,
    "withheld": lambda i: bool(i.trained) and i.withheld,
    "joined": lambda i: bool(i.trained),
}


def _single(
    stratum: str, ideas: Sequence[Idea], count: int, draw: random.Random
) -> list[tuple[str, str, str, str]]:
    lines = []
    for idea in ideas[:count]:
        if stratum in ("source-concept", "concept"):
            source = draw.choice(sorted(idea.held_out))
            text = idea.held_out[source]
        else:
            source = draw.choice(sorted(idea.trained))
            fresh = [t.format(idea.about) for t in TEMPLATES if t.format(idea.about) not in idea.captions]
            text = draw.choice(fresh) if stratum == "wording" and fresh else idea.about
        lines.append((text, idea.about, idea.concept, source))
    return lines


def _joined(ideas: Sequence[Idea], count: int, draw: random.Random) -> list[tuple[str, str, str, str]]:
    """Pairs of ideas of different sources; first those that each source alone has, half of them withheld ones."""
    rare = sorted(ideas, key=lambda idea: (len(idea.trained), not idea.withheld))
    pool, lines, used = rare[: max(4 * count, 2)], [], set[str]()
    draw.shuffle(pool)
    for first in pool:
        others = [i for i in pool if i is not first and i.concept not in used and _sources(first, i)]
        if first.concept in used or not others:
            continue
        apart = [i for i in others if not first.trained & i.trained]
        second = draw.choice(apart or others)
        used |= {first.concept, second.concept}
        text = draw.choice(JOINTS).format(first.about, second.about)
        truth = " ".join(draw.choice(_sources(first, second)))
        lines.append((text, text, f"{first.concept} {second.concept}", truth))
    return lines


def _sources(first: Idea, second: Idea) -> list[tuple[str, str]]:
    """Pairs of different sources, one that trains on each; best those that do not train on the other's."""
    pairs = [(s, t) for s in sorted(first.trained) for t in sorted(second.trained) if s != t]
    strict = [(s, t) for s, t in pairs if s not in second.trained and t not in first.trained]
    return strict or pairs


def _check_names(prompts: Iterable[Prompt], names: Sequence[str]) -> None:
    for prompt in prompts:
        told = [name for name in names if name in prompt.text.split()]
        if told and not set(told) & set(prompt.concepts.split()):
            raise BadInput(f"prompt {prompt.text!r} names the source {told[0]}")


def prompts_csv(prompts: Iterable[Prompt]) -> str:
    """The text of a file of prompts."""
    file = io.StringIO()
    writer = csv.DictWriter(file, [f.name for f in fields(Prompt)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(prompt) for prompt in prompts)
    return file.getvalue()


def read_prompts(plan: Plan, out: Path) -> list[Prompt]:
    """The committed prompts of a plan; where it names none, those that this run made first. Raises BadInput."""
    path = Path(plan.prompts) if plan.prompts else out / "prompts.csv"
    if not path.is_file():
        if plan.prompts:
            raise BadInput(f"{path}: no such file; `python eval/paper/prompts.py {plan.name}` makes it")
        write_bytes(path, prompts_csv(make_prompts(plan)).encode())
    with path.open(encoding="utf-8", newline="") as file:
        prompts = [Prompt(**row) for row in csv.DictReader(file)]
    unknown = {name for prompt in prompts for name in prompt.sources} - set(source_names(plan))
    if unknown or not prompts:
        raise BadInput(f"{path}: {len(prompts)} prompts; unknown sources: {sorted(unknown)}")
    return prompts


def main() -> None:
    """Write the committed file of a plan."""
    plan = PLANS[sys.argv[1]]
    path = Path(plan.prompts)
    path.parent.mkdir(exist_ok=True)
    write_bytes(path, prompts_csv(make_prompts(plan)).encode())


if __name__ == "__main__":
    main()
