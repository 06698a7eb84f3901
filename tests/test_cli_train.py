"""`promptcdm train-adapter`: what it says before it trains, and a dry run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

Run = Callable[..., tuple[int, str, str]]
ToySource = Callable[..., Path]
FAST = ("--batch-size", 2, "--rank", 2, "--device", "cpu")


@pytest.fixture
def run(run: Run) -> Run:
    """`run` of the words after `promptcdm train-adapter`."""
    return partial(run, "train-adapter")


@pytest.fixture
def birds(tmp_path: Path, toy_source: ToySource) -> Path:
    return toy_source(tmp_path / "pictures", "birds", "red")


def _long_caption(folder: Path) -> None:
    """One caption of 30 letters, in a backbone that reads 22 tokens, of a letter each."""
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8")
    long = lines.replace("a large red square", "abcdefghij abcdefghij abcdefghij")
    (folder / "metadata.jsonl").write_text(long, encoding="utf-8")


def test_a_caption_that_is_cut_is_shown_with_the_text_that_is_lost(
    run: Run, birds: Path, tiny_sd1: Path
) -> None:
    _long_caption(birds)
    command = ("--source", birds, "--backbone", tiny_sd1, "--steps", 1, *FAST)
    code, _, err = run(*command)
    assert code == 0, err
    (warning,) = (line for line in err.splitlines() if line.startswith("warning"))
    assert warning == 'warning: birds/large-square.png: 30 tokens, 22 are read; cut is "cdefghij"'
    soft = (*command, "--kind", "prompt", "--prompt-tokens", 4, "--replace")
    assert "30 tokens, 18 are read" in run(*soft)[2]
    assert "31 tokens, 22 are read" in run(*command, "--trigger", "z", "--replace")[2]
    many = run("--all", birds.parent, "--backbone", tiny_sd1, "--steps", 2, *FAST, "--replace")
    assert "30 tokens, 22 are read" in many[2]


def test_a_picture_of_two_sources_is_told_where_both_are_trained(
    run: Run, birds: Path, tiny_sd1: Path, toy_source: ToySource
) -> None:
    toy_source(birds.parent, "cars", "blue")
    toy_source(birds.parent, "copies", "red")
    code, _, err = run("--all", birds.parent, "--backbone", tiny_sd1, "--steps", 1, *FAST)
    assert code == 0, err
    (warning,) = (line for line in err.splitlines() if line.startswith("warning"))
    assert warning.startswith(
        "warning: 6 of 6 pictures of copies are another source's too, first copies/large-"
    )
    assert "the same pixels as birds/large-" in warning


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(
    run: Run, birds: Path, tmp_path: Path, tiny_sd1: Path, toy_source: ToySource
) -> None:
    before = sorted(tmp_path.rglob("*"))
    _, out, err = run("--source", birds, "--backbone", tiny_sd1, "--dry-run", *FAST)
    assert err == ""
    assert [line.split(":")[0] for line in out.splitlines()] == [
        "birds",
        "sizes",
        "steps",
        "learns",
        "work",
        "memory",
        "keeps",
        "time",
        "nothing was written",
    ]
    assert "steps:  500 of 2 pictures, each seen 167 times" in out
    assert sorted(tmp_path.rglob("*")) == before
    toy_source(birds.parent, "cars", "blue")
    (birds.parent / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run("--all", birds.parent, "--backbone", tiny_sd1, "--dry-run", *FAST)
    assert code == 2 and err.endswith("promptcdm: 1 of 3 sources cannot be trained on\n")
    assert err.startswith("empty: ")
    assert "birds: 6 pictures" in out and "cars: 6 pictures" in out and "all 2 sources: " in out
    assert sorted(tmp_path.rglob("*")) == before


def test_an_early_stop_is_told_and_so_is_a_share_of_no_picture(run: Run, birds: Path, tiny_sd1: Path) -> None:
    spoiling = ("--learning-rate", 0.9, "--lr-scheduler", "constant", "--lr-warmup", 0)
    held = ("--held-out", 0.4, "--held-out-every", 1, "--patience", 2)
    command = ("--source", birds, "--backbone", tiny_sd1, *FAST, "--mixed-precision", "no")
    code, _, err = run(*command, "--steps", 40, *spoiling, *held)
    assert code == 0, err
    assert " of 40: the held-out loss was lowest at " in err
    code, _, err = run(*command, "--steps", 1, "--held-out", 0.1, "--replace")
    assert code == 0 and "warning: --held-out 0.1 of 6 pictures of birds is none" in err


def test_large_pictures_are_not_trained_on_nano_by_omission(run: Run, birds: Path) -> None:
    for file in birds.glob("*.png"):
        Image.open(file).resize((256, 256)).save(file)
    for words in (("--source", birds), ("--all", birds.parent), ("--all", birds.parent, "--dry-run")):
        code, out, err = run(*words, "--steps", 1, *FAST)
        assert code != 0 and "6 of 6 pictures have 256 px or more" in out + err
