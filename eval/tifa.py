"""Scores pictures by TIFA: TIFA's question file and image map in, TIFA's result out, a table on the screen.

    python eval/tifa.py --questions questions.json --images map.json --judge nano-judge --out result.json

`promptcdm evaluate tifa` does the same. result.extras.json, beside it, holds interval and blind baselines.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from promptcdm.errors import PromptCDMError, RunFailed
from promptcdm.evaluate import run_tifa
from promptcdm.judge import ACCEPTED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; 0 done, 1 failed, 2 wrong input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--questions", required=True, help="TIFA's question file; rules or llm:ID_OR_FOLDER with --texts"
    )
    parser.add_argument("--texts", type=Path, help="prompts, on which questions are made")
    parser.add_argument(
        "--images", type=Path, required=True, help="JSON of id: picture, relative to its folder"
    )
    parser.add_argument("--judge", required=True, help=ACCEPTED)
    parser.add_argument("--out", type=Path, help="where TIFA's result goes")
    parser.add_argument("--judgements", type=Path, help="file of all answers (default: OUT.judgements.jsonl)")
    parser.add_argument("--negatives", action="store_true", help="ask counterparts whose answer is no, too")
    parser.add_argument("--errors", type=Path, help="what eval/judge_errors.py measured of the judge")
    parser.add_argument("--seed", type=int, default=0, help="of the order of choices (default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    given = parser.parse_args(arguments)
    try:
        report = run_tifa(
            given.questions,
            given.images,
            given.judge,
            given.out,
            texts=given.texts,
            seed=given.seed,
            device=given.device,
            judgements=given.judgements,
            negatives=given.negatives,
            errors=given.errors,
        )
    except PromptCDMError as error:
        print(f"tifa.py: {error}", file=sys.stderr)
        return 1 if isinstance(error, RunFailed) else 2
    for table in (report.table(), report.score_table(), report.errors_table()):
        if table:
            _say(table)
    for line in report.left_out():
        print(f"tifa.py: {line}", file=sys.stderr)
    return 0


def _say(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([row[0].ljust(len(first)), *rest]).rstrip())


if __name__ == "__main__":
    sys.exit(main())
