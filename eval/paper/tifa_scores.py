"""TIFA of every system's pictures: questions by rule on what the prompt is about, answered by each judge.

`real` is a system too: pictures of the sources themselves for the prompts of one idea. What it scores is what a perfect
generator would get from this judge, and the judge-corrected score is (score - chance) / (real - chance).

    raw/tifa.csv    a row for each judge, system, training seed and prompt: hard and soft score, and what a guess gets
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from paper.compare import Scores
from paper.pictures import Drawing, picture_folder
from paper.prompts import Prompt
from paper.sources import read_rows
from paper.stage import Stage, write_csv
from paper.units import done
from promptcdm.answer import Judge
from promptcdm.asking import ask
from promptcdm.judge import load_judge
from promptcdm.judgements import JudgementLog
from promptcdm.question_rules import generate_questions
from promptcdm.questions import Question, Text, questions_json
from promptcdm.tensorfile import write_bytes
from promptcdm.verdict import guess, hard, mean_by_caption, soft

REAL = "real"


def questions_on(stage: Stage, prompts: Sequence[Prompt]) -> tuple[Question, ...]:
    """On each prompt's idea; the wrong objects are other ideas of the sources."""
    nouns = sorted({idea.noun for idea in stage.ideas.values()})
    return generate_questions([Text(p.id, p.about) for p in prompts], nouns, seed=stage.plan.seed)


def write_questions(stage: Stage) -> None:
    """raw/questions.json, in TIFA's format. Loads every judge: one that is missing is missed before any training."""
    for judge in stage.plan.judges:
        _judge(judge, stage.device)
    stage.raw.mkdir(parents=True, exist_ok=True)
    write_bytes(stage.raw / "questions.json", questions_json(questions_on(stage, stage.prompts)).encode())


def judge_drawings(
    stage: Stage, drawings: Sequence[Drawing], prompts: Sequence[Prompt], judges: Sequence[str]
) -> list[dict[str, Any]]:
    """Scores of every picture that the drawings have of these prompts; and, without drawings, nothing."""
    units: dict[Path, Callable[[], Any]] = {}
    for drawing in drawings:
        folder = picture_folder(stage, drawing)
        images = {p.id: folder / f"{p.id}.png" for p in prompts if (folder / f"{p.id}.png").is_file()}
        facts = {"system": drawing.system.name, "without": drawing.without, "seed": drawing.seed}
        for judge in judges:
            path = folder / _file(judge, prompts)
            units[path] = lambda i=images, j=judge, f=facts: _judged(stage, prompts, i, j, f)  # type: ignore[misc]
    return [row for rows in done(units).values() for row in rows]


def judge_real(stage: Stage, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """Scores of the sources' own pictures of the prompts' ideas."""
    images = {p.id: path for p in prompts if p.stratum != "joined" and (path := real_picture(stage, p))}
    facts = {"system": REAL, "without": "", "seed": 0}
    units: dict[Path, Callable[[], Any]] = {
        stage.out / "work" / "real" / _file(judge, prompts): (
            lambda judge=judge: _judged(stage, prompts, images, judge, facts)  # type: ignore[misc]
        )
        for judge in stage.plan.judges
    }
    return [row for rows in done(units).values() for row in rows]


def real_picture(stage: Stage, prompt: Prompt) -> Path | None:
    """A picture of the prompt's idea by its source: the held-out one, else one that was trained on."""
    root = Path(stage.plan.sources)
    for folder in (root / "heldout" / prompt.sources[0], root / prompt.sources[0]):
        for row in read_rows(folder):
            if row.concept == prompt.concepts:
                return folder / row.file
    return None


def write_scores(stage: Stage, rows: Sequence[dict[str, Any]]) -> None:
    """raw/tifa.csv."""
    write_csv(stage.raw / "tifa.csv", rows)


def by_prompt(
    rows: Sequence[Mapping[str, str]],
    judge: str,
    system: str,
    ids: Sequence[str],
    what: str = "hard",
    without: str = "",
) -> Scores:
    """Scores (S, P) of a system on these prompts, training seeds in order; (0, P) where it has none of them."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if (row["judge"], row["system"], row["without"]) == (judge, system, without) and row[what] != "":
            found.setdefault(row["seed"], {})[row["prompt"]] = float(row[what])
    whole = [[scores[id] for id in ids] for scores in found.values() if all(id in scores for id in ids)]
    return np.asarray(whole, dtype=np.float64).reshape(-1, len(ids))


def _file(judge: str, prompts: Sequence[Prompt]) -> str:
    """Where a judge's scores of the pictures of these prompts are kept."""
    asked = hashlib.sha256(" ".join([judge, *(prompt.id for prompt in prompts)]).encode()).hexdigest()
    return f"tifa-{asked[:12]}.json"


@cache
def _judge(name: str, device: str) -> Judge:
    return load_judge(name, device=device)


def _judged(
    stage: Stage, prompts: Sequence[Prompt], images: Mapping[str, Path], judge: str, facts: Mapping[str, Any]
) -> list[dict[str, Any]]:
    questions = questions_on(stage, [prompt for prompt in prompts if prompt.id in images])
    if not questions:
        return []
    judged = ask(questions, images, _judge(judge, stage.device), JudgementLog(), seed=stage.plan.seed)
    asked = [verdict.question for verdict in judged.verdicts]
    right, sure = mean_by_caption(hard(judged.verdicts)), mean_by_caption(soft(judged.verdicts))
    blind = mean_by_caption(guess(asked)).by_caption
    stratum = {prompt.id: prompt.stratum for prompt in prompts}
    return [
        {
            "judge": judge,
            **facts,
            "part": prompts[0].part,
            "prompt": id,
            "stratum": stratum[id],
            "hard": score,
            "soft": sure.by_caption.get(id, ""),
            "chance": blind[id],
            "failures": sum(failure.id == id for failure in judged.failures),
        }
        for id, score in right.by_caption.items()
    ]
