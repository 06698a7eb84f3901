"""The comparison with diffusers' training script, with a stand-in for the script, which is not ours to ship."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

from promptcdm.adapter import save_adapter
from promptcdm.backbone import Backbone
from promptcdm.settings import TrainSettings
from promptcdm.source import Source
from promptcdm.train import train_adapter

BENCH = Path(__file__).resolve().parent.parent / "eval" / "bench"
# Takes the script's flags, tells its bar of every step and leaves a LoRA.
STAND_IN = """
import shutil, sys
from pathlib import Path
from tqdm.auto import tqdm

def main():
    flags = dict(word[2:].split("=", 1) for word in sys.argv[1:] if "=" in word)
    assert (Path(flags["train_data_dir"]) / "metadata.jsonl").is_file()
    bar = tqdm(range(int(flags["max_train_steps"])), initial=0, desc="Steps", disable=False)
    for _ in range(int(flags["max_train_steps"])):
        sum(range(10_000))
        bar.update(1)
        bar.set_postfix(step_loss=0.0)
    Path(flags["output_dir"]).mkdir(parents=True, exist_ok=True)
    shutil.copy(LORA, flags["output_dir"])

if __name__ == "__main__":
    main()
"""
FAST = TrainSettings(steps=4, held_out=0.4, mixed_precision="no")


@pytest.fixture
def bench(import_script: Callable[[Path, str], ModuleType]) -> Callable[[str], ModuleType]:
    """Return a function that imports a script of eval/bench."""
    return partial(import_script, BENCH)


@pytest.fixture
def script(tmp_path: Path, birds: Source, backbone: Backbone) -> Path:
    """A stand-in that leaves the LoRA that our own training gives."""
    save_adapter(train_adapter(birds, backbone, FAST), tmp_path / "ours")
    path = tmp_path / "train_text_to_image_lora.py"
    lora = tmp_path / "ours" / "pytorch_lora_weights.safetensors"
    path.write_text(f"LORA = {str(lora)!r}\n{STAND_IN}", encoding="utf-8")
    return path


def run(module: ModuleType, monkeypatch: pytest.MonkeyPatch, out: Path, *words: object) -> object:
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, words), "--out", str(out)])
    threads = torch.get_num_threads()
    try:
        module.main()
    finally:
        torch.set_num_threads(threads)
    return json.loads(out.read_text(encoding="utf-8"))


def test_every_way_is_timed_and_what_latents_may_gain_is_counted(
    bench: Callable[[str], ModuleType],
    script: Path,
    tiny_sd1: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("--script", script, "--backbone", tiny_sd1, "--resolution", 32, "--pictures", 6, "--batch", 2)
    (table,) = run(bench("train"), monkeypatch, tmp_path / "t.json", *words, "--steps", 2, "--repeats", 2)  # type: ignore[misc]
    assert [row["way"] for row in table] == ["theirs", "nothing", "latents", "kept"]
    assert all(row["s"] <= row["s_median"] and row["s"] > 0 for row in table)
    assert table[0]["speed"] == 1.0
    assert table[2]["allowed"] > 1 and table[2]["share"] == pytest.approx(
        table[1]["s"] / table[2]["s"] / table[2]["allowed"], rel=0.1
    )
    assert "allowed" in capsys.readouterr().out


def test_an_epoch_that_ends_with_a_smaller_batch_is_refused(
    bench: Callable[[str], ModuleType], script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--script", script, "--pictures", 5, "--batch", 2)
    with pytest.raises(SystemExit, match="a multiple of 2"):
        run(bench("train"), monkeypatch, tmp_path / "t.json", *words)


def test_what_is_encoded_anew_at_each_step_is_what_was_kept(
    bench: Callable[[str], ModuleType], birds: Source, backbone: Backbone
) -> None:
    module, settings = bench("train"), replace(FAST, held_out=0.0, batch_size=2)
    encode = module.encode_source
    kept = encode(birds, backbone, settings, "")
    data, batch = module.inputs(kept, birds, backbone, settings, 0)
    for item in batch.items.tolist():
        row, own = data.caption_of[item], kept.caption_of[item]
        torch.testing.assert_close(data.embeds[row], kept.embeds[own])
    anew, batch = module.inputs(None, birds, backbone, settings, 0)
    assert len(anew.buckets[0].items) == 2 and set(batch.items.tolist()) <= set(
        anew.buckets[0].items.tolist()
    )


def test_the_same_lora_has_the_same_held_out_loss(
    bench: Callable[[str], ModuleType],
    script: Path,
    birds: Source,
    tiny_sd1: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("--script", script, "--backbone", tiny_sd1, "--data", birds.folder, "--held-out", 0.4)
    (row,) = run(bench("train_quality"), monkeypatch, tmp_path / "q.json", *words, "--steps", 4)  # type: ignore[misc]
    assert (row["trained on"], row["held out"], row["seen"]) == (4, 2, 32)
    for name in ("mse", "min-snr"):
        losses = row[name]
        assert losses["ours"] == losses["theirs"] != losses["backbone"]
        assert row[f"{name}, ours - theirs"] == [0, 0]


@pytest.mark.slow
def test_sources_in_a_row_are_processes_with_their_memory(
    bench: Callable[[str], ModuleType],
    script: Path,
    tiny_sd1: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("--script", script, "--backbone", tiny_sd1, "--resolution", 32, "--pictures", 6, "--batch", 2)
    (table,) = run(
        bench("train"), monkeypatch, tmp_path / "t.json", *words, "--steps", 0, "--row", 2, "--row-steps", 2
    )  # type: ignore[misc]
    assert [row["way"] for row in table] == ["theirs", "ours, one by one", "ours, --all"]
    assert table[2]["s"] < table[1]["s"]
    assert all(row["gib"] > 0 and row["images"] == 8 for row in table)
