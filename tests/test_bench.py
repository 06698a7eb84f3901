"""The composition benchmark on a tiny UNet: every way runs, ours agree with the loop, and the table says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "eval" / "bench" / "compose.py"
TINY = {
    "attention_head_dim": 4,
    "block_out_channels": [32, 32],
    "cross_attention_dim": 16,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 1,
    "out_channels": 4,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "unet.json"
    path.write_text(json.dumps(TINY), encoding="utf-8")
    return path


def run(tiny: Path, *flags: str) -> dict[tuple[int, str], dict[str, float]]:
    """The table by sources and way, through the command."""
    out = tiny.with_name("table.json")
    words = [sys.executable, SCRIPT, "--unet", tiny, "--latents", "8", "--calls", "6", "--repeats", "1"]
    subprocess.run([*words, "--out", out, *flags], check=True, capture_output=True, text=True)
    return {(row["sources"], row["way"]): row for row in json.loads(out.read_text(encoding="utf-8"))}


def test_the_table_holds_every_way_with_its_error(tiny: Path) -> None:
    table = run(tiny, "--sources", "1", "4", "--peak-tflops", "1")
    one, four = ({way for k, way in table if k == count} for count in (1, 4))
    assert one == {"loop", "peft", "plain", "stock", "rows", "rows anew", "shared"}
    assert four == {"loop", "peft", "plain", "rows", "rows anew", "shared", "top-2", "top-2 fast"}
    for key in ((1, "stock"), (1, "rows"), (4, "peft"), (4, "rows"), (4, "rows anew")):
        assert table[key]["error"] < 1e-5, key
    assert table[4, "shared"]["error"] > 1e-3, "adapters that were not trained for it draw something else"
    rows = {way: table[4, way]["rows"] for way in four}
    assert rows["rows"] == 8
    assert rows["shared"] == 5
    assert rows["top-2 fast"] < rows["top-2"] < 5
    assert all(0 < row["mfu"] < 1 for row in table.values())
    assert table[4, "loop"]["gib"] is None, "memory is a GPU's"


@pytest.mark.slow
def test_compiled_forwards_are_the_same_function(tiny: Path) -> None:
    """Through inductor, as on a GPU but for the CUDA graphs."""
    table = run(tiny, "--sources", "4", "--compile")
    assert table[4, "rows, c"]["error"] < 1e-4
    assert table[4, "top-2, c"]["error"] == pytest.approx(table[4, "top-2"]["error"], rel=1e-3)


def test_a_store_is_measured_beside_a_larger_one() -> None:
    script = SCRIPT.with_name("store.py")
    words = [sys.executable, script, "--stored", "2", "3", "--steps", "2", "--repeats", "1"]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
    assert [line.split()[0] for line in said] == ["stored", "2", "3", "the"]
    assert said[-1] == "the same picture, byte for byte"
