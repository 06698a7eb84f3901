"""One list before any model is loaded: copies, near copies, captions that are cut, and what sources share."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from promptcdm import clip_tokenizer, preflight, train
from promptcdm.cli import main
from promptcdm.errors import BadInput
from promptcdm.preflight import compare, long_captions
from promptcdm.source import Source


def _noise(seed: int, side: int = 64) -> Image.Image:
    fields = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(fields).resize((side, side), Image.Resampling.BICUBIC)


def _source(folder: Path, pictures: dict[str, Image.Image], caption: str = "a field") -> Path:
    folder.mkdir()
    for name, image in pictures.items():
        image.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(caption)
    (folder / "source.toml").write_text('license = "MIT"')
    return folder


class _Words:
    """A token a word, and room for six."""

    model_max_length = 8

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        self.words = [each.split() for each in text]
        return {"input_ids": [[1000 * n + i for i in range(len(w))] for n, w in enumerate(self.words)]}

    def decode(self, ids: list[int]) -> str:
        return " ".join(self.words[i // 1000][i % 1000] for i in ids)


def test_sources_that_share_nothing_have_no_findings(tmp_path: Path) -> None:
    one = _source(tmp_path / "one", {"a": _noise(0), "b": _noise(1)})
    two = _source(tmp_path / "two", {"a": _noise(2)})
    findings = preflight.preflight([one, two], tokenizer=_Words())
    assert (findings.pictures, findings.errors, findings.warnings) == ({"one": 2, "two": 1}, (), ())


def test_a_copy_in_another_source_is_an_error_and_in_the_same_a_warning(tmp_path: Path) -> None:
    one = _source(tmp_path / "one", {"a": _noise(0), "b": _noise(1)})
    two = _source(tmp_path / "two", {"c": _noise(0), "d": _noise(3), "e": _noise(3)})
    findings = preflight.preflight([one, two])
    assert findings.errors == ("two/c.png: the same pixels as one/a.png",)
    assert "two/e.png: the same pixels as two/d.png" in findings.warnings
    assert not any("looks like" in line for line in findings.warnings)


def test_a_picture_scaled_or_compressed_again_looks_like_itself(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    _noise(0).save(buffer, "JPEG", quality=60)
    changed = {"half": _noise(0).resize((32, 32)), "jpeg": Image.open(buffer)}
    one, two = (
        Source.open(_source(tmp_path / name, pictures))
        for name, pictures in (("one", {"a": _noise(0), "b": _noise(1)}), ("two", changed))
    )
    copies, near = compare([one, two])
    assert not copies
    assert {"one/a.png: looks like two/half.png", "one/a.png: looks like two/jpeg.png"} <= set(near)
    assert not any("b.png" in line for line in near)


def test_plain_pictures_that_differ_a_little_are_not_near(tmp_path: Path) -> None:
    """Pages of text are all nearly white: alike in levels, unlike by their own contrast."""
    pages = {}
    for seed in range(6):
        ink = np.random.default_rng(seed).random((64, 64)) < 0.1
        pages[f"page{seed}"] = Image.fromarray(np.where(ink, 0, 255).astype(np.uint8))
    assert compare([Source.open(_source(tmp_path / "pages", pages))]) == ([], [])


def test_the_text_that_is_cut_is_shown_and_trigger_and_soft_prompt_take_places(tmp_path: Path) -> None:
    source = Source.open(_source(tmp_path / "one", {"a": _noise(0)}, "one two three four five six"))
    assert long_captions(source, _Words()) == []
    assert long_captions(source, _Words(), trigger="sks") == [
        'one/a.png: 7 tokens, 6 are read; cut is "six"',
    ]
    assert long_captions(source, _Words(), soft_tokens=2) == [
        'one/a.png: 6 tokens, 4 are read; cut is "five six"',
    ]


def test_the_tokenizer_of_nano_is_loaded_without_its_weights(tmp_path: Path) -> None:
    source = Source.open(_source(tmp_path / "one", {"a": _noise(0)}, "a red bird " * 30 + "last"))
    (line,) = long_captions(source, clip_tokenizer.load_tokenizer("nano"))
    assert line.startswith("one/a.png: ") and line.endswith('last"') and "30 are read" in line
    with pytest.raises(BadInput, match="has no tokenizer"):
        clip_tokenizer.load_tokenizer(str(tmp_path))


def test_problems_of_one_source_do_not_hide_those_of_the_next(tmp_path: Path) -> None:
    one, two = (_source(tmp_path / name, {"a": _noise(0)}) for name in ("one", "two"))
    (one / "a.png").write_bytes(b"x")
    (two / "a.txt").unlink()
    findings = preflight.preflight([one, two])
    assert [line.partition(": ")[2] for line in findings.errors] == [
        "a.png: not a PNG, JPEG or WEBP picture",
        "a.png: no caption; write a.txt or a row of metadata.jsonl",
    ]


def test_a_file_in_error_hides_nothing_of_the_sound_ones(tmp_path: Path) -> None:
    long = "one two three four five six seven"
    one = _source(tmp_path / "one", {"a": _noise(0), "b": _noise(1)}, long)
    two = _source(tmp_path / "two", {"c": _noise(0), "d": _noise(2), "e": _noise(2)})
    (one / "b.png").write_bytes(b"x")
    (two / "e2.png").write_bytes(b"x")
    empty = _source(tmp_path / "empty", {"a": _noise(3)})
    (empty / "a.txt").unlink()
    findings = preflight.preflight([one, two, empty], tokenizer=_Words())
    assert findings.pictures == {}  # training refuses all three
    assert [line.rpartition("/")[2] for line in findings.errors] == [
        "one: b.png: not a PNG, JPEG or WEBP picture",
        "two: e2.png: no caption; write e2.txt or a row of metadata.jsonl",
        "empty: a.png: no caption; write a.txt or a row of metadata.jsonl",
        "a.png",
    ]
    assert findings.errors[3] == "two/c.png: the same pixels as one/a.png"
    assert 'one/a.png: 7 tokens, 6 are read; cut is "seven"' in findings.warnings
    assert "two/e.png: the same pixels as two/d.png" in findings.warnings


def test_a_picture_of_a_trained_adapter_is_found_by_its_manifest_alone(tmp_path: Path) -> None:
    old = Source.open(_source(tmp_path / "old", {"a": _noise(0)})).manifest()
    new = _source(tmp_path / "new", {"b": _noise(0)})
    (line,) = preflight.preflight([new], trained={"old": old}).errors
    assert line == "new/b.png: the same pixels as a.png, which old was trained on"
    (version,) = preflight.preflight([new], trained={"old@123abc": old}).errors
    assert version.endswith("which old@123abc was trained on")
    for own in ("new", "new@123abc"):
        assert preflight.preflight([new], trained={own: old}).errors == ()


def test_training_knows_nothing_of_preflight() -> None:
    """It compares sources; whoever trains one must not see another."""
    tree = ast.parse(Path(str(train.__file__)).read_text(encoding="utf-8"))
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == preflight.__name__]


def test_the_command_lists_all_and_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (_source(tmp_path / name, {"a": _noise(0), "b": _noise(0)}) for name in ("one", "two"))
    with pytest.raises(SystemExit) as stop:
        main(["preflight", str(one), str(two), "--backbone", ""])
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert "error: two/a.png: the same pixels as one/a.png" in out and "one: 2 pictures" in out
    assert err.startswith("promptcdm: preflight found 2 problems")
    for flags, code in (([], 0), (["--strict"], 2)):
        with pytest.raises(SystemExit) as stop:
            main(["preflight", str(one), "--backbone", "", *flags])
        assert stop.value.code == code
