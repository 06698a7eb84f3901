"""The public evaluation data that may lie beside a checkout, and are never in it."""

from __future__ import annotations

from pathlib import Path

import pytest


def shared(relative: str) -> Path:
    """A file of the data beside the checkout; the test is skipped, and says so, where there is none."""
    for parent in Path(__file__).resolve().parents:
        found = parent / "shared" / "data" / relative
        if found.is_file():
            return found
    pytest.skip(f"shared/data/{relative} is not beside this checkout")
