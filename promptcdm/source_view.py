"""What each source does for a score: the source alone, all sources, and all but it.

    all - without it    what the pictures lose with the source, paired by prompt

A run takes part by the sources that its pictures were made from: one is "alone", the largest set that holds every
other run's is "all", and a set that lacks one of those is "without" it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from promptcdm.evaluation_run import Run
from promptcdm.paired import Paired, compare


@dataclass(frozen=True)
class SourceView:
    """One source in the runs that are there; None for a run that is not."""

    source: str
    alone: Run | None
    without: Run | None
    adds: Paired | None  # TIFA of all sources minus TIFA without this one


def source_views(runs: Sequence[Run]) -> tuple[Run | None, tuple[SourceView, ...]]:
    """The run of all sources, and a view of each source; none where no run has two sources or more.

    Of two runs of the same sources the first counts.
    """
    sets = {run.name: frozenset(run.allowed) for run in runs if run.allowed is not None}
    by_set = {sets[run.name]: run for run in reversed(runs) if run.name in sets}
    whole = max(by_set, key=len, default=frozenset())
    if len(whole) < 2 or any(not own <= whole for own in by_set):
        return None, ()
    all_of_them = by_set[whole]
    views = []
    for source in all_of_them.allowed or ():
        alone, without = by_set.get(frozenset({source})), by_set.get(whole - {source})
        adds = None if without is None else paired(all_of_them, without)
        if alone or without:
            views.append(SourceView(source, alone, without, adds))
    return all_of_them, tuple(views)


def paired(a: Run, b: Run) -> Paired | None:
    """How much higher TIFA of `a` is than of `b`; None where they share no caption."""
    if not set(a.captions) & set(b.captions):
        return None
    prompts = {id: caption or id for run in (a, b) for id, caption in run.facts["prompts"].items()}
    return compare(a.captions, b.captions, prompts)
