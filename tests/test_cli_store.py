"""The commands that look after a store: versions listed, brought back, trained again, and pictures forgotten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from made_adapter import made_adapter

from promptcdm.store import AdapterStore

Run = Callable[..., tuple[int, str, str]]
ToySource = Callable[..., Path]
TRAINING = ("--steps", "4", "--batch-size", "4", "--rank", "2", "--mixed-precision", "no")


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    """The default store of the folder that `run` works in: birds, trained twice."""
    filled = AdapterStore(tmp_path / "adapters")
    for seed in (0, 1):
        filled.add(made_adapter(seed=seed), replace=True)
    return filled


OLD, NOW = (made_adapter(seed=seed).sha256 for seed in (0, 1))


def test_versions_are_listed_checked_and_brought_back(run: Run, store: AdapterStore) -> None:
    assert OLD[:12] not in run("sources")[1]
    listed = run("sources", "--versions")[1].splitlines()
    assert listed[1].startswith("birds ") and listed[2].startswith(f"birds@{OLD[:12]} ")
    assert run("verify")[1].splitlines() == [
        f"birds: ok, sha256 {NOW}",
        f"birds@{OLD[:12]}: ok, sha256 {OLD}",
    ]
    code, out, _ = run("rollback", "birds")
    assert (code, out) == (0, f"adapters/birds: sha256 {OLD}; the version before is birds@{NOW[:12]}\n")
    assert store.load("birds").sha256 == OLD
    assert run("rollback", "birds", NOW[:8])[0] == 0
    assert store.load("birds").sha256 == NOW


def test_one_older_version_is_forgotten(run: Run, store: AdapterStore) -> None:
    code, out, _ = run("forget", f"birds@{OLD[:12]}", "--yes")
    assert code == 0 and f"adapter {OLD}" in out
    assert store.versions("birds") == [] and store.load("birds").sha256 == NOW


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rollback", "nobody"], "no source 'nobody' that you may use"),
        (["rollback", "birds", "000000"], "no source 'birds@000000' that you may use"),
        (["rollback"], "Missing argument 'NAME'"),
        (["verify", "--retrain"], "verify NAME --retrain --data FOLDER"),
        (["verify", "birds", "--retrain"], "verify NAME --retrain --data FOLDER"),
        (["verify", "birds", "--data", "x"], "go with --retrain"),
        (["verify", "birds", "--device", "cpu"], "go with --retrain"),
        (["verify", "birds", "--retrain", "--data", "x"], "x: no such folder"),
        (["forget", "birds", "--items", "x"], "--data FOLDER"),
        (["forget", "birds", "--check", "--yes"], "go with --items"),
        (["forget", "birds", "--items", "nothing", "--data", "x"], "No such file or directory: nothing"),
    ],
)
def test_what_does_not_go_is_one_line(
    run: Run, store: AdapterStore, arguments: list[str], words: str
) -> None:
    code, out, err = run(*arguments)
    assert code in (1, 2) and out == ""
    assert err.startswith("promptcdm: ") and err.count("\n") == 1
    assert words in err
    assert store.load("birds").sha256 == NOW and len(store.versions("birds")) == 1


def test_an_adapter_is_trained_again_and_compared(
    run: Run, tmp_path: Path, toy_source: ToySource, tiny_sd1: Path
) -> None:
    folder = toy_source(tmp_path, "birds", "red")
    backbone = ("--backbone", tiny_sd1, "--device", "cpu")
    assert run("train-adapter", "--source", folder, *TRAINING, *backbone, "--license", "MIT")[0] == 0
    code, out, _ = run("verify", "birds", "--retrain", "--data", folder, *backbone)
    digest = AdapterStore(tmp_path / "adapters").load("birds").sha256
    assert (code, out) == (0, f"birds: trained again, the same bytes, sha256 {digest}\n")
    (folder / "small-circle.png").write_bytes((folder / "large-circle.png").read_bytes())
    code, out, err = run("verify", "birds", "--retrain", "--data", folder, *backbone)
    assert (code, out) == (1, "")
    assert err == "promptcdm: birds cannot come out again: data: other pixels: small-circle.png\n"


def test_pictures_are_forgotten_by_one_command(
    run: Run, tmp_path: Path, toy_source: ToySource, tiny_sd1: Path
) -> None:
    folder = toy_source(tmp_path, "birds", "red")
    backbone = ("--backbone", tiny_sd1, "--device", "cpu")
    trained = run("train-adapter", "--source", folder, *TRAINING, *backbone, "--slices", "3")
    assert trained[0] == 0
    store = AdapterStore(tmp_path / "adapters")
    before = store.load("birds")
    (tmp_path / "gone.txt").write_text("large-circle.png\n\n")
    command = ("forget", "birds", "--items", "gone.txt", "--data", folder, "--check", *backbone)
    assert "add --yes where nobody can answer" in run(*command)[2]
    assert store.load("birds").sha256 == before.sha256
    code, out, err = run(*command, "--yes")
    after = store.load("birds")
    assert code == 0
    assert "birds: forgets large-circle.png" in err
    assert f"forgotten: 1 picture of adapter {before.sha256}\nnow:       adapter {after.sha256}\n" in out
    assert f"{len(before.slices) - 1} of {len(after.slices)} slices stay byte for byte" in out
    assert out.endswith(f"gives the same bytes, sha256 {after.sha256}\n")
    assert store.versions("birds") == []
    assert run("verify", "birds")[0] == 0
