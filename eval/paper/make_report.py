"""The report of a run from its raw files, on any machine: `python eval/paper/make_report.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from paper.figures import make_figures
from paper.report import write_report
from paper.tables import make_tables


def make_report(out: Path) -> Path:
    """Tables, figures and report.md; the sheet of pictures was drawn by the run."""
    tables = make_tables(out)
    make_figures(out, tables)
    return write_report(out, tables)


if __name__ == "__main__":
    make_report(Path(sys.argv[1]))
