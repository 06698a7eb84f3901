"""Compares generated with real pictures: two folders and a model in, figures with intervals and floors out.

    python eval/fidelity.py --real real --generated out --features dinov2:dinov2-large --out fidelity.json

`promptcdm evaluate fidelity` does the same; docs/fidelity.md says what the figures mean.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from promptcdm.config import settle
from promptcdm.errors import PromptCDMError, RunFailed
from promptcdm.features import ACCEPTED
from promptcdm.fidelity import fidelity
from promptcdm.settings import FidelitySettings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; 0 done, 1 failed, 2 wrong input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--real", type=Path, required=True, help="folder of real pictures")
    parser.add_argument("--generated", type=Path, required=True, help="folder of generated pictures")
    parser.add_argument("--features", required=True, help=f"{ACCEPTED}, of local weights")
    parser.add_argument("--out", type=Path, help="JSON of all figures")
    for setting in fields(FidelitySettings):
        words = f"{setting.metadata['help']} [{setting.default}]"
        parser.add_argument(f"--{setting.name.replace('_', '-')}", help=words)
    given = parser.parse_args(arguments)
    try:
        settings = settle(FidelitySettings, {}, vars(given))
        report = fidelity(given.real, given.generated, given.features, given.out, settings=settings)
    except PromptCDMError as error:
        print(f"fidelity.py: {error}", file=sys.stderr)
        return 1 if isinstance(error, RunFailed) else 2
    rows = report.table()
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(*report.guidance, sep="\n")
    if report.in_both:
        print(f"{report.in_both} generated files are, byte for byte, real files.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
