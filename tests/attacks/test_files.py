"""What a hostile file or folder may try: run code, reach outside, exhaust memory, pass for something else."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_adapter import made_adapter, random_lora

from promptcdm.adapter import load_adapter, save_adapter
from promptcdm.errors import AdapterMismatch, BadSource, UnknownSource
from promptcdm.lora_format import read_lora
from promptcdm.source import Source
from promptcdm.store import AdapterStore
from promptcdm.tensorfile import decode_tensors, encode_tensors, read_bytes, read_json, write_json

LORA = "pytorch_lora_weights.safetensors"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AdapterStore:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    store = AdapterStore(tmp_path / "adapters")
    for name in ("birds", "coco"):
        store.add(made_adapter(name, seed=len(name)))
    return store


def _file(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _entry(start: int = 0, end: int = 8, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


HEADERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "zeros": (b"\0" * 64, "not a safetensors file"),
    "huge header length": (_file({"a": _entry()}, length=2**63), "at most 16777216 are accepted"),
    "header longer than the file": (_file({"a": _entry()}, length=4096), "cut short"),
    "key twice": (_file(b'{"a":1,"a":2}'), "key 'a' is given twice"),
    "key twice inside": (
        _file(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"\0" * 8),
        "key 'dtype' is given twice",
    ),
    "overlapping offsets": (
        _file({"a": _entry(), "b": _entry(4, 12)}, b"\0" * 12),
        "not a valid safetensors",
    ),
    "a hole": (_file({"a": _entry(8, 16)}, b"\0" * 16), "not a valid safetensors"),
    "data beyond the end": (_file({"a": _entry(0, 80, (20,))}, b"\0" * 8), "not a valid safetensors"),
    "data left over": (_file({"a": _entry()}, b"\0" * 800), "not a valid safetensors"),
    "shape does not fit": (_file({"a": _entry(shape=(3,))}, b"\0" * 8), "not a valid safetensors"),
    "shape that overflows": (
        _file({"a": _entry(shape=(2**62, 2**62))}, b"\0" * 8),
        "not a valid safetensors",
    ),
    "negative shape": (_file({"a": _entry(shape=(-2,))}, b"\0" * 8), "not a valid safetensors"),
    "shape of text": (_file({"a": _entry() | {"shape": "2"}}, b"\0" * 8), "not a valid safetensors"),
    "unknown dtype": (_file({"a": _entry(dtype="F99")}, b"\0" * 8), "has dtype F99; accepted are"),
    "dtype that is a list": (_file({"a": _entry() | {"dtype": []}}, b"\0" * 8), r"has dtype \[\]; accepted"),
    "extra key": (_file({"a": _entry() | {"code": "x"}}, b"\0" * 8), "needs dtype, shape and data_offsets"),
    "entry that is a list": (_file({"a": []}), "needs dtype, shape and data_offsets"),
    "metadata of numbers": (_file({"__metadata__": {"a": 1}}), "must map text to text"),
    "metadata of objects": (_file({"__metadata__": {"a": {"b": {}}}}), "must map text to text"),
    "nested to death": (_file(b'{"a":' + b"[" * 200_000), "recursion|nest"),
    "bad UTF-8": (_file(b'{"\xff":1}'), "utf-8"),
    "half a character": (
        _file(b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"\0" * 8),
        "not a valid safetensors",
    ),
    "NaN in the header": (_file(b'{"a":NaN}'), "NaN is not JSON"),
    "a list": (_file(b"[]      "), "not a safetensors file"),
    "too many tensors": (_file({f"t{n}": 0 for n in range(20_000)}), "20000 tensors; at most 16384"),
}


@pytest.mark.parametrize("attack", HEADERS)
def test_hostile_headers_are_refused_at_once(attack: str) -> None:
    data, message = HEADERS[attack]
    start = time.process_time()
    with pytest.raises(AdapterMismatch, match=message) as caught:
        decode_tensors(data, "x.safetensors")
    assert time.process_time() - start < 2
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_sound_file_passes_the_same_checks() -> None:
    """The files above are refused for what is wrong with them: this one differs only in being right."""
    tensors, _ = decode_tensors(_file({"a": _entry(), "b": _entry(8, 16)}, b"\0" * 16), "x.safetensors")
    assert torch.equal(tensors["b"], torch.zeros(2))


def test_every_single_wrong_byte_of_an_adapter_is_found_or_harmless(tmp_path: Path) -> None:
    """Flip one bit of every byte of every tensor file. What still loads is the same adapter."""
    save_adapter(made_adapter(lora=random_lora({"a": (2, 2)})), tmp_path / "birds")
    sha256 = load_adapter(tmp_path / "birds").sha256
    refused = 0
    for name in (LORA, "birds.safetensors"):
        path = tmp_path / "birds" / name
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        for position in range(0, len(data), 1 if name == LORA else 7):
            path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
            try:
                assert load_adapter(tmp_path / "birds").sha256 == sha256
                assert position < start, "a changed tensor was accepted"
            except AdapterMismatch:
                refused += 1
        path.write_bytes(data)
    assert refused > 100


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def _pickles(folder: Path, bomb: _Bomb) -> dict[str, Path]:
    paths = {f"protocol {n}": folder / f"p{n}" for n in range(pickle.HIGHEST_PROTOCOL + 1)}
    for n, path in enumerate(paths.values()):
        path.write_bytes(pickle.dumps(bomb, protocol=n))
    paths["torch.save"] = folder / "torch"
    torch.save({"a": bomb}, paths["torch.save"])
    paths["old torch.save"] = folder / "old"
    torch.save({"a": bomb}, paths["old torch.save"], _use_new_zipfile_serialization=False)
    paths["zip"] = folder / "zip"
    with zipfile.ZipFile(paths["zip"], "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(bomb))
    paths["tar"] = folder / "tar"
    with tarfile.open(paths["tar"], "w") as tar:
        tar.add(paths["zip"], "data.pkl")
    return paths


@pytest.mark.parametrize("name", [LORA, "birds.safetensors", "router.safetensors"])
def test_a_pickle_under_a_safetensors_name_is_not_run(tmp_path: Path, name: str) -> None:
    bomb = _Bomb(tmp_path / "ran")
    save_adapter(made_adapter(), tmp_path / "birds")
    pickles = _pickles(tmp_path, bomb)
    pickle.loads(pickles["protocol 4"].read_bytes())
    assert bomb.path.is_dir(), "the bomb works"
    bomb.path.rmdir()
    for kind, path in pickles.items():
        shutil.copy(path, tmp_path / "birds" / name)
        with pytest.raises(AdapterMismatch, match=r"only safetensors files are read|at most|not valid JSON"):
            load_adapter(tmp_path / "birds")
        with pytest.raises(AdapterMismatch):
            read_lora(tmp_path / "birds" / name, ["a"])
        assert not bomb.path.exists(), kind


def test_loading_never_unpickles_or_starts_anything(tmp_path: Path) -> None:
    save_adapter(made_adapter(), tmp_path / "birds")
    events: list[str] = []
    watching = [True]

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event in (
            "pickle.find_class",
            "exec",
            "compile",
            "os.system",
            "subprocess.Popen",
            "import",
        ):
            events.append(event)

    sys.addaudithook(watch)
    load_adapter(tmp_path / "birds")
    assert events == []
    compile("1", "x", "eval")
    assert events == ["compile"], "the watch works"
    watching.clear()  # a hook cannot be taken away


# Files of an adapter that are not its own.


def test_files_of_two_adapters_cannot_be_mixed(store: AdapterStore) -> None:
    names = [LORA, "router.safetensors", "manifest.json", "adapter.json"]
    for name in names:
        before = (store.root / "birds" / name).read_bytes()
        shutil.copy(store.root / "coco" / name, store.root / "birds" / name)
        with pytest.raises(AdapterMismatch, match="birds"):
            store.load("birds")
        (store.root / "birds" / name).write_bytes(before)
    assert store.load("birds").source == "birds"


def test_an_older_version_of_one_file_is_refused(store: AdapterStore) -> None:
    old = (store.root / "birds" / LORA).read_bytes()
    store.add(made_adapter("birds", seed=99), replace=True)
    (store.root / "birds" / LORA).write_bytes(old)
    with pytest.raises(AdapterMismatch, match="its tensors have digest"):
        store.load("birds")


@pytest.mark.parametrize(
    "name", [LORA, "birds.safetensors", "adapter.json", "manifest.json", "train_log.jsonl"]
)
def test_a_link_to_another_source_is_refused(store: AdapterStore, name: str) -> None:
    path = store.root / "birds" / name
    shutil.copy(path, store.root / "copy")
    path.unlink()
    path.symlink_to(store.root / "copy")
    with pytest.raises(AdapterMismatch, match=f"{name}: a link"):
        store.load("birds")


def test_no_name_reaches_outside_the_store(store: AdapterStore, tmp_path: Path) -> None:
    save_adapter(made_adapter("cats"), tmp_path / "cats")
    names = [
        "../cats",
        "birds/../../cats",
        str(tmp_path / "cats"),
        "..",
        ".",
        "cats\0",
        "",
        "~",
        "birds\n",
        "Birds",
    ]
    for name in [*names, "\uff42irds", "birds.", ".birds.new.partial", "birds.partial", "store.lock"]:
        for action in (store.load, store.record, store.remove, store.erase):
            with pytest.raises(UnknownSource):
                action(name)
    assert load_adapter(tmp_path / "cats").source == "cats"
    assert store.sources() == ["birds", "coco"]


def test_a_record_cannot_name_files_elsewhere(store: AdapterStore, tmp_path: Path) -> None:
    shutil.copy(store.root / "birds/birds.safetensors", tmp_path / "x.safetensors")
    for source in ("../x", str(tmp_path / "x"), "..", "birds/birds", "con"):
        record = read_json(store.root / "birds/adapter.json") | {"source": source}
        write_json(store.root / "birds/adapter.json", record)
        with pytest.raises(AdapterMismatch, match="source name"):
            store.load("birds")


def test_removing_follows_no_link(store: AdapterStore, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("x")
    (store.root / "birds/inside").symlink_to(tmp_path / "precious", target_is_directory=True)
    (store.root / ".x.removed.partial").symlink_to(tmp_path / "precious", target_is_directory=True)
    store.erase("birds")
    assert (tmp_path / "precious/file").read_text() == "x"
    assert store.sources() == ["coco"]


def test_a_pipe_does_not_block_the_reader(store: AdapterStore) -> None:
    path = store.root / "birds" / LORA
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(AdapterMismatch, match="no such file"):
        store.load("birds")


def test_a_file_of_terabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.truncate(5 << 30)  # sparse: takes no space
    with pytest.raises(AdapterMismatch, match="5368709120 bytes"):
        read_bytes(tmp_path / "x")


def test_records_cannot_forge_lines_of_a_table_or_card(tmp_path: Path) -> None:
    save_adapter(made_adapter(), tmp_path / "birds")
    path = tmp_path / "birds/adapter.json"
    record = read_json(path)
    for key in ("author", "license", "trigger", "origin", "attribution", "imported_from"):
        for text in ("a\nb", "a\x1b[2J", "a\r", "a\u2028b"):
            write_json(path, record | {key: text})
            with pytest.raises(AdapterMismatch, match=f"{key}: String should match"):
                load_adapter(tmp_path / "birds")


# Source folders.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from PIL import Image

    folder = tmp_path / "source"
    folder.mkdir()
    for path in (folder / "a.png", tmp_path / "secret.png"):
        Image.new("RGB", (8, 8), "red").save(path)
    (folder / "a.txt").write_text("a red square")
    (tmp_path / "secret.txt").write_text("a secret")
    Source.open(folder)
    return folder


def _refused(folder: Path, message: str) -> None:
    with pytest.raises(BadSource) as caught:
        Source.open(folder)
    assert any(message in problem for problem in caught.value.problems), caught.value.problems
    assert all("\n" not in problem and "\x1b" not in problem for problem in caught.value.problems)


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "{absolute}", "x/../../secret.png", "C:\\secret.png", "..\\secret.png", "C:secret.png"],
)
def test_a_row_cannot_name_a_file_outside(folder: Path, name: str) -> None:
    (folder / "a.txt").unlink()
    rows = [{"file_name": "a.png", "text": "red"}]
    (folder / "metadata.jsonl").write_text(json.dumps(rows[0]))
    Source.open(folder)
    rows.append({"file_name": name.format(absolute=folder.parent / "secret.png"), "text": "x"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _refused(folder, "a path must lie inside the folder")


def _link(name: str, target: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).symlink_to(folder.parent / target)


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("b.png", "secret.png", "b.png: "),
        ("a.caption", "secret.txt", "two captions"),
        ("source.toml", "secret.txt", "source.toml: a link that leads out of the folder"),
        ("metadata.jsonl", "secret.txt", "metadata.jsonl: a link that leads out of the folder"),
        ("more", ".", "more: a link to a folder"),
        ("loop.png", "source/loop.png", "loop.png"),
        ("gone.toml", "nowhere", ""),
    ],
)
def test_a_link_cannot_lead_outside(folder: Path, name: str, target: str, message: str) -> None:
    _link(name, target)(folder)
    if message:
        _refused(folder, message)
    else:
        assert len(Source.open(folder)) == 1


def test_a_linked_caption_or_picture_is_not_read(folder: Path) -> None:
    (folder / "a.txt").unlink()
    _link("a.txt", "secret.txt")(folder)
    _refused(folder, "a.txt: a link that leads out of the folder")
    (folder / "a.txt").unlink()
    (folder / "a.txt").write_text("red")
    _link("b.png", "secret.png")(folder)
    (folder / "b.txt").write_text("blue")
    _refused(folder, "b.png: a link that leads out of the folder")


def test_a_picture_swapped_for_a_link_after_the_check_is_not_used(folder: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8), "blue").save(folder.parent / "secret.png")
    source = Source.open(folder)
    (folder / "a.png").unlink()
    _link("a.png", "secret.png")(folder)
    with pytest.raises(BadSource, match="changed after it was checked"):
        source.picture(0)


def test_names_that_would_forge_output_are_shown_escaped(folder: Path) -> None:
    (folder / "x\x1b[31m\n.png").write_bytes((folder / "a.png").read_bytes())
    _refused(folder, r"'x\x1b[31m\n.png': the name holds control characters")
    (folder / "x\x1b[31m\n.png").unlink()
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    _refused(folder, "the name holds control characters")


def test_source_toml_runs_nothing_and_hides_nothing(folder: Path) -> None:
    (folder / "source.toml").write_text('license = "MIT"\nlicense = "CC0"\n')
    _refused(folder, "source.toml: cannot be read")
    (folder / "source.toml").write_text("a = " + "[" * 50_000)
    _refused(folder, "source.toml: cannot be read")


def test_a_pickle_is_not_a_picture(folder: Path) -> None:
    (folder / "a.png").write_bytes(pickle.dumps(_Bomb(folder.parent / "ran")))
    _refused(folder, "a.png: not a PNG, JPEG or WEBP picture")
    assert not (folder.parent / "ran").exists()


def test_a_decoder_that_is_not_needed_is_not_used(folder: Path) -> None:
    """EPS runs Ghostscript; many decoders are many ways in. The content decides, so a name does not help."""
    from PIL import Image

    for kind in ("EPS", "GIF", "BMP", "TIFF", "PPM", "PCX"):
        Image.new("RGB", (8, 8)).save(folder / "a.png", kind)
        _refused(folder, "a.png: not a PNG, JPEG or WEBP picture")


def test_encoding_ends_where_the_header_says() -> None:
    """Nothing can be smuggled behind the tensors: a reader that skips the check would carry it along."""
    data = encode_tensors({"a": torch.ones(2)}, {})
    with pytest.raises(AdapterMismatch):
        decode_tensors(data + b"payload", "x")
