"""Pictures and captions in every layout: lists, sidecars, kohya's folders, tar shards, tables, URLs."""

from __future__ import annotations

import csv
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from promptcdm.encoded_source import turns
from promptcdm.errors import BadSource
from promptcdm.source import Source

ROWS = {"a": ("red", "a red square"), "b": ("blue", "a blue square, plain")}


def _png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "squares"
    folder.mkdir()
    for key, (colour, _) in ROWS.items():
        (folder / f"{key}.png").write_bytes(_png(colour))
    return folder


def _problems(data: Path | str) -> tuple[str, ...]:
    with pytest.raises(BadSource) as caught:
        Source.open(data)
    return caught.value.problems


def _content(source: Source) -> list[tuple[str, str, str]]:
    return [(item.caption, item.sha256, item.pixels_sha256) for item in source.items]


def _sidecars(folder: Path, ending: str = ".txt") -> None:
    for key, (_, caption) in ROWS.items():
        (folder / f"{key}{ending}").write_text(caption)


def _tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def _members(ending: str = "txt") -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    for key, (colour, caption) in ROWS.items():
        text = json.dumps({"caption": caption, "url": "x"}) if ending == "json" else caption
        members |= {f"{key}.png": _png(colour), f"{key}.{ending}": text.encode()}
    return members


def test_csv_gives_the_same_manifest_as_sidecars(folder: Path) -> None:
    _sidecars(folder)
    before = Source.open(folder).manifest()
    for key in ROWS:
        (folder / f"{key}.txt").unlink()
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("file_name", "text", "x"), *((f"{k}.png", t, 1) for k, (_, t) in ROWS.items())]
        )
    assert Source.open(folder).manifest() == before


def test_a_caption_with_commas_and_no_quotes_is_not_cut(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name,text\na.png,red\nb.png,blue, plain\n")
    first, second = _problems(folder)
    assert first == "metadata.csv line 3: not 2 columns; a caption with commas needs quotes"
    assert second == "b.png: not named in metadata.csv"


def test_two_lists_or_two_columns_of_one_name_are_problems(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name,text,text\na.png,red,x\nb.png,blue,y\n")
    assert _problems(folder) == ("metadata.csv line 1: a column has the name of another",)
    (folder / "metadata.jsonl").write_text("")
    assert _problems(folder)[0].startswith("two lists of captions")


def test_two_places_that_say_the_same_are_one_caption(folder: Path) -> None:
    _sidecars(folder)
    before = Source.open(folder).manifest()
    _sidecars(folder, ".caption")
    assert Source.open(folder).manifest() == before
    (folder / "a.caption").write_text("another")
    assert _problems(folder) == ("a.png: two captions that differ, in a.txt and a.caption",)


def test_kohya_folders_give_repeats_and_their_name_where_nothing_else_is_written(tmp_path: Path) -> None:
    for name, colour in (("10_red bird", "red"), ("2_blue_bird", "blue")):
        (tmp_path / "k" / name).mkdir(parents=True)
        (tmp_path / "k" / name / "a.png").write_bytes(_png(colour))
    (tmp_path / "k/2_blue_bird/a.txt").write_text("its own")
    source = Source.open(tmp_path / "k")
    assert [(i.file, i.caption, i.repeats) for i in source.items] == [
        ("10_red bird/a.png", "red bird", 10),
        ("2_blue_bird/a.png", "its own", 2),
    ]
    assert any('take "red bird" from the folder\'s name' in note for note in source.notes)
    assert any("repeats 2, 10: a picture is trained on as often" in note for note in source.notes)
    assert turns(source).tolist() == [0] * 10 + [1] * 2
    (tmp_path / "k/2_blue_bird/b.png").write_bytes(_png("green"))
    assert _problems(tmp_path / "k")[0].startswith("2_blue_bird/b.png: no caption")
    (tmp_path / "k/10_red bird/a.png").rename(tmp_path / "k/a.png")
    assert any(p.startswith("a.png: no caption") for p in _problems(tmp_path / "k"))


@pytest.mark.parametrize("ending", ["txt", "caption", "json"])
def test_a_shard_gives_what_a_folder_gives(folder: Path, ending: str) -> None:
    _sidecars(folder)
    shard = _tar(folder.parent / "birds.tar", _members(ending))
    source = Source.open(shard)
    assert source.name == "birds"
    assert _content(source) == _content(Source.open(folder))
    assert [item.file for item in source.items] == ["birds.tar/a.png", "birds.tar/b.png"]
    assert source.picture(1).getpixel((0, 0)) == (0, 0, 255)
    _tar(shard, _members(ending) | {"b.png": _png("green")})
    with pytest.raises(BadSource, match="changed after it was checked"):
        source.picture(1)


def test_a_pattern_names_shards_and_keys_may_come_again_in_the_next(tmp_path: Path) -> None:
    for name in ("x-0", "x-1", "y-0"):
        _tar(tmp_path / f"{name}.tar", _members())
    assert len(Source.open(tmp_path / "x-*.tar", "x")) == 4
    assert len(Source.open(tmp_path, "all")) == 6


def test_shards_keep_the_rules_of_folders(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("a.png", "../b.png", "/c.png", "a.png"):
            info = tarfile.TarInfo(name)
            info.size = len(_png("red"))
            archive.addfile(info, io.BytesIO(_png("red")))
        for name, kind in (
            ("d.png", tarfile.SYMTYPE),
            ("e.png", tarfile.LNKTYPE),
            ("f.png", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    problems = _problems(path)
    for name, reason in (
        ("../b.png", "a path must lie inside"),
        ("/c.png", "a path must"),
        ("a.png", "there twice"),
    ):
        assert any(p.startswith(f"t.tar/{name}: {reason}") for p in problems), problems
    assert sum("a link or a special file" in problem for problem in problems) == 3
    assert any(p.startswith("t.tar/a.png: no caption; write a.txt or .caption or .json") for p in problems)


def test_a_damaged_or_cut_shard_loses_nothing_in_silence(tmp_path: Path) -> None:
    path = _tar(tmp_path / "t.tar", _members())
    data = path.read_bytes()
    damaged = bytearray(data)
    damaged[1024:1100] = b"x" * 76  # the header of the second member: tarfile would end here without a word
    for changed in (bytes(damaged), data[:2048], data[:2000], data + data, b"", b"x" * 2000):
        path.write_bytes(changed)
        assert any(problem.startswith("t.tar: ") for problem in _problems(path)), len(changed)


def test_json_of_a_shard_must_agree_with_its_text(tmp_path: Path) -> None:
    members = _members() | {"a.json": b'{"caption": "other"}', "b.json": b'{"width": 3}'}
    assert _problems(_tar(tmp_path / "t.tar", members)) == (
        "t.tar/a.png: two captions that differ, in t.tar/a.txt and t.tar/a.json",
    )


def test_two_layouts_in_one_folder_are_a_problem(folder: Path) -> None:
    _sidecars(folder)
    _tar(folder / "more.tar", _members())
    assert _problems(folder) == ("holds pictures and tar shards; give each a folder of its own",)


def _table(rows: list[dict[str, Any]]) -> Any:
    pa = pytest.importorskip("pyarrow", reason="needs promptcdm[datasets]")
    return pa.Table.from_pylist(rows)


def _rows() -> list[dict[str, Any]]:
    return [{"image": {"bytes": _png(c), "path": None}, "text": t} for c, t in ROWS.values()]


def test_parquet_gives_what_a_folder_gives(folder: Path) -> None:
    table = _table(_rows())
    import pyarrow.parquet as pq

    _sidecars(folder)
    path = folder.parent / "train-00000-of-00001.parquet"
    pq.write_table(table, path, row_group_size=1)
    source = Source.open(path, "birds")
    assert _content(source) == _content(Source.open(folder))
    assert source.picture(1).getpixel((0, 0)) == (0, 0, 255)
    assert source.picture(0).getpixel((0, 0)) == (255, 0, 0)
    pq.write_table(table, folder.parent / "test-00000-of-00001.parquet")
    problems = _problems(folder.parent / "*.parquet")
    assert any("parquet files of the splits test, train" in problem for problem in problems)


def test_rows_without_picture_or_caption_are_problems(tmp_path: Path) -> None:
    rows = [*_rows(), {"image": {"bytes": None, "path": "/etc/passwd"}, "text": "x"}]
    rows += [{"image": None, "text": "x"}, {"image": {"bytes": b"x", "path": None}, "text": None}]
    table = _table(rows)
    import pyarrow.parquet as pq

    pq.write_table(table, tmp_path / "t.parquet")
    problems = _problems(tmp_path / "t.parquet")
    assert [p.partition(": ")[2][:24] for p in sorted(problems)] == [
        "names a file elsewhere i",
        "no picture",
        "no caption",
    ]
    (tmp_path / "t.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:-30])
    assert "cannot be read" in _problems(tmp_path / "t.parquet")[0]


def test_what_the_datasets_library_saves_is_read(folder: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="writes the folder that is read here; not in dev")
    _sidecars(folder)
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = {"image": [r["image"] for r in _rows()], "caption": [r["text"] for r in _rows()]}
    data = datasets.Dataset.from_dict(rows, features=features)
    data.save_to_disk(folder.parent / "saved")
    source = Source.open(folder.parent / "saved")
    assert _content(source) == _content(Source.open(folder))
    assert source.picture(1).getpixel((0, 0)) == (0, 0, 255)
    datasets.DatasetDict({"test": data, "train": data}).save_to_disk(folder.parent / "both")
    assert "a dataset of the splits test, train" in _problems(folder.parent / "both")[0]


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.parquet").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    assert "promptcdm[datasets]" in _problems(tmp_path / "t.parquet")[0]
    assert "promptcdm[remote]" in _problems("s3://bucket/birds")[0]


def test_a_url_gives_what_a_folder_gives(folder: Path) -> None:
    fsspec = pytest.importorskip("fsspec", reason="needs promptcdm[remote]")
    _sidecars(folder)
    system = fsspec.filesystem("memory")
    for path in folder.iterdir():
        system.pipe(f"/birds/{path.name}", path.read_bytes())
    system.pipe("/shards/x.tar", _tar(folder.parent / "x.tar", _members()).read_bytes())
    try:
        source = Source.open("memory://birds")
        assert source.manifest().merkle_root == Source.open(folder).manifest().merkle_root
        assert source.name == "birds" and source.picture(0).getpixel((0, 0)) == (255, 0, 0)
        assert _content(Source.open("memory://shards/x.tar")) == _content(source)
        assert "nothing is there" in _problems("memory://gone")[0]
        assert "chained" in _problems("simplecache::memory://birds")[0]
        with pytest.raises(BadSource, match="not known") as caught:
            Source.open("nosuch://u:secret@birds")
        assert "secret" not in str(caught.value)
    finally:
        system.rm("/birds", recursive=True)
        system.rm("/shards", recursive=True)


def test_a_file_url_keeps_the_rules_of_folders(folder: Path) -> None:
    _sidecars(folder)
    assert Source.open(folder.as_uri()).manifest() == Source.open(folder).manifest()
    (folder.parent / "secret.png").write_bytes(_png("red"))
    (folder / "c.png").symlink_to(folder.parent / "secret.png")
    (folder / "c.txt").write_text("x")
    assert _problems(folder.as_uri()) == ("c.png: a link that leads out of the folder",)
