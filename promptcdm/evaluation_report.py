"""The report of one or more evaluations: one HTML file that holds all that it shows.

Scores with intervals and blind judges, paired comparison with the first run, element types, what each source does,
weights over the steps, every picture with every question, and what all of it was made of.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptcdm import __version__
from promptcdm.agreement import Agreement, agreement
from promptcdm.colours import source_colour
from promptcdm.errors import BadInput
from promptcdm.evaluation_run import TIFA, Run, read_runs, same_questions
from promptcdm.page import Band, Share, bands, render
from promptcdm.paired import Paired
from promptcdm.picture_view import caption_views
from promptcdm.settings import ReportSettings
from promptcdm.source_view import paired, source_views
from promptcdm.tensorfile import write_bytes
from promptcdm.tifa import FEWEST_PROMPTS

_ALL = "all"  # the row of baselines that is no element type
_FEW = 30  # captions up to which every question is unfolded


@dataclass(frozen=True)
class Figure:
    """A score with what stands beside it."""

    value: float
    low: float | None  # 95 %; None where there are too few prompts for an interval
    high: float | None
    blind: tuple[tuple[str, float], ...]  # (judge that sees no picture, its score)

    @property
    def best_blind(self) -> float:
        """The highest of them."""
        return max(value for _, value in self.blind)

    @property
    def clears(self) -> bool:
        """True where the whole interval is above all of them."""
        return self.low is not None and self.low > self.best_blind


@dataclass(frozen=True)
class RunView:
    """One run, under the letter that stands for it in the whole report."""

    letter: str
    run: Run
    figure: Figure
    corrected: float | None  # (score - chance) / (1 - chance)
    without_errors: Mapping[str, Any] | None  # the score corrected for the judge's errors, as the file says
    coverage: float
    shares: tuple[Share, ...] | None  # mean weights; None where the pictures have no records
    bands: tuple[Band, ...]  # mean weights over the steps
    steps: int


@dataclass(frozen=True)
class TypeView:
    """One element type in every run that has it."""

    name: str
    questions: int  # of the first of them
    figures: tuple[tuple[str, Figure], ...]  # (letter, figure)


@dataclass(frozen=True)
class PairView:
    """One run against the first."""

    letter: str
    name: str
    found: Paired | None  # None where they share no caption


def evaluation_report(
    runs: Sequence[str | Path], out: Path, *, settings: ReportSettings = ReportSettings()
) -> Path:
    """Write the report of result files, each FILE or NAME=FILE; the first is what the others are compared with.

    Raises BadInput for a file that is no result, for two runs of one name, and for a setting out of range.
    """
    page = render_evaluation(read_runs(runs), settings)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, page.encode())
    return out


@dataclass(frozen=True)
class JudgesView:
    """Two judges on the same pictures."""

    letters: tuple[str, str]
    names: tuple[str, str]
    found: Agreement | None  # None where they were asked no question in common


def render_evaluation(runs: Sequence[Run], settings: ReportSettings = ReportSettings()) -> str:
    """The report's HTML. Raises BadInput for no runs, and for a setting out of range."""
    if not runs:
        raise BadInput("there is no run; give one result file or more")
    if settings.pictures < 0 or settings.picture_size < 16:
        raise BadInput(
            f"pictures is {settings.pictures} and picture_size {settings.picture_size}; they take 0 (all) or more, "
            "and 16 pixels or more"
        )
    colours = source_colours(runs)
    letters = [_letter(place) for place in range(len(runs))]
    captions, more = caption_views(runs, letters, colours, settings)
    whole, sources = source_views(runs)
    pairs = _pairs(runs, letters)
    views = [_run_view(run, letter, colours) for run, letter in zip(runs, letters, strict=True)]
    return render(
        "evaluation.html.j2",
        version=__version__,
        runs=views,
        letters={run.name: letter for run, letter in zip(runs, letters, strict=True)},
        colours=colours,
        clear=[view.run.name for view in views if view.figure.clears],
        alike=same_questions(runs),
        prompts=len({caption or id for id, caption in runs[0].facts["prompts"].items()}),
        pairs=pairs,
        judges=_judges(runs, letters),
        reach=_reach(pairs),
        types=_types(runs, letters),
        fewest=FEWEST_PROMPTS,
        scores=_score_rows(runs, letters),
        whole=whole,
        sources=sources,
        captions=captions,
        more=more,
        unfolded=len(captions) <= _FEW,
        failures={run.name: _reasons(run) for run in runs if run.facts["failures"]},
        facts={run.name: _facts(run) for run in runs},
    )


def source_colours(runs: Sequence[Run]) -> dict[str, str]:
    """{source: colour}, by place in the run of most sources, then in the others."""
    widest = sorted(runs, key=lambda run: -len(run.allowed or ()))
    names = dict.fromkeys(
        name for run in widest for record in run.records.values() for name in record["allowed"]
    )
    return {name: source_colour(place) for place, name in enumerate(names)}


def _letter(place: int) -> str:
    return chr(ord("A") + place) if place < 26 else str(place + 1)


def _figure(run: Run) -> Figure:
    low, high = run.facts["interval_95"]
    blind = tuple((name, float(scores[_ALL])) for name, scores in run.facts["baselines"].items())
    return Figure(statistics.fmean(run.captions.values()), low, high, blind)


def _run_view(run: Run, letter: str, colours: Mapping[str, str]) -> RunView:
    score = run.facts["scores"][TIFA]
    shares, steps = _mean_weights(run)
    own = {name: colours[name] for name in run.allowed or ()}
    return RunView(
        letter=letter,
        run=run,
        figure=_figure(run),
        corrected=score["corrected"]["chance"],
        without_errors=run.facts.get("corrected_for_judge"),
        coverage=score["coverage"],
        shares=None
        if shares is None
        else tuple(Share(name, colours[name], weight) for name, weight in shares.items()),
        bands=tuple(bands(steps, own)) if len(own) > 1 else (),
        steps=len(steps),
    )


def _mean_weights(run: Run) -> tuple[dict[str, float] | None, list[dict[str, float]]]:
    """Mean over pictures of the weights, and of those of each step where all pictures have as many steps."""
    if run.allowed is None:
        return None, []
    records = list(run.records.values())
    means = {name: statistics.fmean(r["weights"][name] for r in records) for name in run.allowed}
    by_step: list[list[dict[str, float]]] = [record["weights_by_step"] for record in records]
    if len({len(steps) for steps in by_step}) != 1:
        return means, []
    return means, [
        {name: statistics.fmean(step[name] for step in each) for name in run.allowed}
        for each in zip(*by_step, strict=True)
    ]


def _pairs(runs: Sequence[Run], letters: Sequence[str]) -> list[PairView]:
    return [
        PairView(letter, run.name, paired(run, runs[0]))
        for run, letter in zip(runs[1:], letters[1:], strict=True)
    ]


def _judges(runs: Sequence[Run], letters: Sequence[str]) -> list[JudgesView]:
    """Each two runs of different judges that looked at the same pictures."""
    views = []
    for (one, a), (other, b) in itertools.combinations(zip(letters, runs, strict=True), 2):
        digests = [{id: run.facts["pictures"][id]["sha256"] for id in run.captions} for run in (a, b)]
        shared = digests[0].keys() & digests[1].keys()
        if a.facts["judge"] == b.facts["judge"] or not shared:
            continue
        if all(digests[0][id] == digests[1][id] for id in shared):
            asked = [{(v.question.id, v.question.question) for v in run.verdicts} for run in (a, b)]
            found = agreement(a.verdicts, b.verdicts) if asked[0] & asked[1] else None
            views.append(JudgesView((one, other), (str(a.facts["judge"]), str(b.facts["judge"])), found))
    return views


def _reach(pairs: Sequence[PairView]) -> float:
    """How far the axis of differences goes to both sides: the widest interval, in tenths."""
    ends = [abs(end) for pair in pairs if pair.found for end in (*pair.found.interval, pair.found.difference)]
    return max(1, -int(-10 * max(ends, default=0.1) // 1)) / 10


def _types(runs: Sequence[Run], letters: Sequence[str]) -> list[TypeView]:
    names = sorted({kind for run in runs for kind in run.types})
    views = []
    for kind in names:
        having = [(letter, run) for letter, run in zip(letters, runs, strict=True) if kind in run.types]
        figures = tuple((letter, _type_figure(run, kind)) for letter, run in having)
        views.append(TypeView(kind or "no type", having[0][1].facts["questions"][kind], figures))
    return views


def _type_figure(run: Run, kind: str) -> Figure:
    low, high = run.facts["type_intervals_95"].get(kind, (None, None))
    blind = tuple((name, float(scores[kind])) for name, scores in run.facts["baselines"].items())
    return Figure(run.types[kind], low, high, blind)


def _score_rows(runs: Sequence[Run], letters: Sequence[str]) -> list[tuple[str, list[tuple[str, Any]]]]:
    """(score, [(letter, what the file says of it)]), in the order of the files."""
    names = dict.fromkeys(name for run in runs for name in run.facts["scores"])
    return [
        (
            name,
            [
                (letter, run.facts["scores"][name])
                for letter, run in zip(letters, runs, strict=True)
                if name in run.facts["scores"]
            ],
        )
        for name in sorted(names, key=lambda name: (name != TIFA, name))
    ]


def _reasons(run: Run) -> list[tuple[str, int, str]]:
    """(id, questions, reason) of what has no verdict."""
    counts: dict[tuple[str, str], int] = {}
    for failure in run.facts["failures"]:
        key = str(failure["id"]), str(failure["reason"])
        counts[key] = counts.get(key, 0) + 1
    return [(id, count, reason) for (id, reason), count in counts.items()]


def _facts(run: Run) -> list[tuple[str, str]]:
    """(what, value) of everything that the result was made of."""
    facts = run.facts
    rows = [
        ("result", run.path.name),
        ("judge", str(facts["judge"])),
        ("judge version", str(facts["judge_version"])),
        ("seed of the choices' order", str(facts["seed"])),
        ("questions, sha256", str(facts["questions_sha256"])),
    ]
    rows += [(name, str(value)) for name, value in facts["versions"].items()]
    if not run.records:
        return [*rows, ("pictures", "have no records of promptcdm generate")]
    records = list(run.records.values())
    rows.append(("backbone, sha256", _each(record.get("backbone", "") for record in records)))
    adapters = {a["source"]: a["sha256"] for record in records for a in record["adapters"]}
    rows += [(f"adapter {name}, sha256", digest) for name, digest in adapters.items()]
    rows.append(("seeds of the pictures", _each(str(record["seed"]) for record in records)))
    settings = {name for record in records for name in record["settings"]} - {"seed", "num_images"}
    for name in sorted(settings):
        values = _each(str(record["settings"].get(name, "")) for record in records)
        if values:
            rows.append((name, values))
    return rows


def _each(values: Iterable[str]) -> str:
    """The values that occur, each once; whole numbers that follow one another as the first to the last."""
    found = list(dict.fromkeys(values))
    if not all(value.isdigit() for value in found):
        return ", ".join(found)
    runs: list[list[int]] = []
    for number in sorted(map(int, found)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
