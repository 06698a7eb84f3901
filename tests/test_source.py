"""Reading a folder of pictures: the two layouts, the licence facts, and every problem at once."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from promptcdm.errors import BadInput, BadSource
from promptcdm.manifest import merkle_root
from promptcdm.picture import BadPicture, decode_picture
from promptcdm.source import Source, check_name

CAPTIONS = {"a.png": "a red square", "b.jpg": "a blue square", "more/c.webp": "a green square"}
COLOURS = {"a.png": (255, 0, 0), "b.jpg": (0, 0, 255), "more/c.webp": (0, 255, 0)}


def _png(mode: str, value: object, size: tuple[int, int] = (8, 8), **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, value).save(buffer, "PNG", **options)  # type: ignore[arg-type]
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "squares"
    (folder / "more").mkdir(parents=True)
    for file, colour in COLOURS.items():
        Image.new("RGB", (16, 12), colour).save(folder / file)
    _write_rows(folder, [{"file_name": file, "text": text} for file, text in CAPTIONS.items()])
    return folder


def _write_rows(folder: Path, rows: list[dict[str, object]]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _problems(folder: Path, **keywords: str) -> tuple[str, ...]:
    with pytest.raises(BadSource) as caught:
        Source.open(folder, **keywords)
    return caught.value.problems


def test_metadata_and_sidecars_give_the_same_source(folder: Path) -> None:
    by_metadata = Source.open(folder)
    (folder / "metadata.jsonl").unlink()
    (folder / "a.txt").write_text("  a red\n square \n")
    (folder / "b.caption").write_text("a blue square")
    (folder / "more/c.txt").write_bytes(b"\xef\xbb\xbfa green square\r\n")
    by_sidecar = Source.open(folder)
    assert [(item.file, item.caption) for item in by_metadata.items] == list(CAPTIONS.items())
    assert by_sidecar.manifest() == by_metadata.manifest()
    assert by_sidecar.items == by_metadata.items
    assert by_metadata.name == "squares"
    assert len(by_metadata) == 3


def test_extra_keys_of_a_row_are_ignored_and_order_does_not_matter(folder: Path) -> None:
    before = Source.open(folder).manifest().merkle_root
    rows = [{"file_name": f"./{f}", "text": t, "objects": [1]} for f, t in reversed(CAPTIONS.items())]
    _write_rows(folder, rows)
    assert Source.open(folder).manifest().merkle_root == before


def test_source_toml_and_keywords(folder: Path) -> None:
    (folder / "source.toml").write_text('license = "CC-BY-4.0"\nauthor = "Ann"\ntrigger = "sq"\n')
    source = Source.open(folder, "other", author="Bob", origin="example.org")
    facts = (source.license, source.author, source.origin, source.attribution, source.trigger)
    assert facts == ("CC-BY-4.0", "Bob", "example.org", "", "sq")
    assert source.name == "other"
    assert source.notes == ()
    assert source.manifest().license == "CC-BY-4.0"


def test_missing_licence_is_noassertion_with_a_note(folder: Path) -> None:
    source = Source.open(folder)
    assert source.license == "NOASSERTION"
    assert any("NOASSERTION" in note for note in source.notes)
    assert Source.open(folder, license="MIT").notes == ()


def test_unknown_keys_of_source_toml_are_errors(folder: Path) -> None:
    (folder / "source.toml").write_text('licence = "MIT"\nauthor = 3\n')
    unknown, wrong = _problems(folder)
    assert "unknown key 'licence'; known are license, author, origin, attribution, trigger" in unknown
    assert "author must be text" in wrong
    (folder / "source.toml").write_text("license = ")
    assert "source.toml: cannot be read" in _problems(folder)[0]
    (folder / "source.toml").write_text('license = "MIT\\nX"')
    assert _problems(folder) == ("license: must be one line of text",)


def test_every_problem_is_listed_at_once(folder: Path) -> None:
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:60])
    (folder / "noise.png").write_bytes(b"not a picture")
    (folder / "small.png").write_bytes(_png("RGB", 0, (7, 20)))
    (folder / "unnamed.png").write_bytes(_png("RGB", 0))
    (folder / "old.gif").write_bytes(b"GIF89a")
    rows: list[dict[str, object]] = [
        {"file_name": "a.png", "text": "cut short"},
        {"file_name": "b.jpg", "text": "  "},
        {"file_name": "more/../b.jpg", "text": "up and down"},
        {"file_name": "./b.jpg", "text": "again"},
        {"file_name": "noise.png", "text": "noise"},
        {"file_name": "small.png", "text": "small"},
        {"file_name": "gone.png", "text": "gone"},
        {"file_name": "x" * 300, "text": "long"},
        {"file_name": "more/c.webp", "caption": "wrong key"},
        {"text": "no file"},
    ]
    _write_rows(folder, rows)
    with (folder / "metadata.jsonl").open("a") as file:
        file.write("{broken\n")
    problems = _problems(folder)
    for expected in (
        "a.png: cannot be decoded",
        "b.jpg: its caption is empty (metadata.jsonl line 2)",
        "metadata.jsonl line 3: more/../b.jpg: a path must lie inside the folder",
        "metadata.jsonl line 4: ./b.jpg has a row already, in line 2",
        "noise.png: not a PNG, JPEG or WEBP picture",
        "small.png: 7x20 pixels; each side needs at least 8",
        "metadata.jsonl line 7: gone.png: no such file",
        f"metadata.jsonl line 8: {'x' * 300}: no such file",
        "metadata.jsonl line 9: more/c.webp: no caption; it is the key text, here are ['caption'",
        "metadata.jsonl line 10: needs the keys file_name and text",
        "metadata.jsonl line 11: not valid JSON",
        "unnamed.png: not named in metadata.jsonl",
        "old.gif: .gif pictures are not read",
    ):
        assert sum(problem.startswith(expected) for problem in problems) == 1, expected
    assert len(problems) == 13


def test_the_message_is_one_line_with_the_count(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text("")
    with pytest.raises(BadSource, match=r"squares: 3 problems, the first: a\.png: not named") as caught:
        Source.open(folder)
    assert "\n" not in str(caught.value)


def test_captions_in_sidecars_are_checked(folder: Path) -> None:
    (folder / "metadata.jsonl").unlink()
    (folder / "a.txt").write_text("one")
    (folder / "a.caption").write_text("two")
    (folder / "b.txt").write_bytes(b"caf\xe9")
    (folder / "orphan.caption").write_text("no picture")
    (folder / "LICENSE.txt").write_text("no caption")
    problems = _problems(folder)
    assert problems == (
        "a.png: two captions that differ, in a.txt and a.caption",
        "b.txt: not UTF-8; save it as UTF-8",
        "more/c.webp: no caption; write c.txt or a row of metadata.jsonl",
        "orphan.caption: a caption without its picture",
    )


def test_metadata_beside_sidecars_is_two_captions(folder: Path) -> None:
    (folder / "a.txt").write_text("another caption")
    assert _problems(folder) == ("a.png: two captions that differ, in metadata.jsonl and in a.txt",)


def test_unused_text_files_are_noted(folder: Path) -> None:
    (folder / "metadata.jsonl").unlink()
    for file, text in CAPTIONS.items():
        (folder / file).with_suffix(".txt").write_text(text)
    (folder / "LICENSE.txt").write_text("MIT")
    assert "LICENSE.txt: no picture of that name, not used" in Source.open(folder, license="MIT").notes


@pytest.mark.parametrize("caption", ["\x00", "red\x1b[31m", "\ud800"])
def test_captions_with_control_characters_are_problems(folder: Path, caption: str) -> None:
    rows: list[dict[str, object]] = [{"file_name": f, "text": t} for f, t in CAPTIONS.items()]
    rows[0]["text"] = caption
    _write_rows(folder, rows)
    assert _problems(folder) == ("a.png: its caption holds control characters (metadata.jsonl line 1)",)


def test_missing_empty_and_file_instead_of_folder(tmp_path: Path) -> None:
    with pytest.raises(BadSource, match=r"gone: no such folder; give a folder of pictures"):
        Source.open(tmp_path / "gone")
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadSource, match=r"holds no picture"):
        Source.open(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadSource, match=r"empty: holds no picture \(PNG, JPEG or WebP\)"):
        Source.open(tmp_path / "empty")


def test_hidden_files_are_left_alone(folder: Path) -> None:
    before = Source.open(folder).manifest()
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails/t.png").write_bytes(b"x")
    (folder / ".DS_Store").write_bytes(b"x")
    assert Source.open(folder).manifest() == before


def test_manifest_holds_digests_and_nothing_of_the_content(folder: Path) -> None:
    source = Source.open(folder, license="MIT")
    manifest = source.manifest()
    first = manifest.items[0]
    data = (folder / "a.png").read_bytes()
    assert (first.file, first.bytes) == ("a.png", len(data))
    assert first.sha256 == hashlib.sha256(data).hexdigest()
    assert first.pixels_sha256 == hashlib.sha256(b"16x12\n" + b"\xff\0\0" * 192).hexdigest()
    assert first.caption_sha256 == hashlib.sha256(b"a red square").hexdigest()
    assert [item.file for item in manifest.items] == sorted(CAPTIONS)
    assert not any(caption in manifest.model_dump_json() for caption in CAPTIONS.values())
    assert str(folder) not in manifest.model_dump_json()


def test_merkle_root_is_rfc_6962(folder: Path) -> None:
    items = Source.open(folder).manifest().items

    def digest(prefix: bytes, data: bytes) -> bytes:
        return hashlib.sha256(prefix + data).digest()

    texts = [json.dumps(i.model_dump(), sort_keys=True, separators=(",", ":")).encode() for i in items]
    a, b, c = (digest(b"\0", text) for text in texts)
    assert merkle_root(items) == digest(b"\1", digest(b"\1", a + b) + c).hex()
    assert merkle_root(items[:1]) == a.hex()
    assert merkle_root(items[::-1]) != merkle_root(items)


@pytest.mark.parametrize("change", ["pixel", "caption", "file"])
def test_source_digest_sees_one_changed_item(folder: Path, change: str) -> None:
    before = Source.open(folder).manifest().merkle_root
    if change == "pixel":
        image = Image.open(folder / "a.png")
        image.putpixel((3, 3), (254, 0, 0))
        image.save(folder / "a.png")
    elif change == "caption":
        text = (folder / "metadata.jsonl").read_text().replace("red", "dark red")
        (folder / "metadata.jsonl").write_text(text)
    else:
        (folder / "a.png").rename(folder / "z.png")
        text = (folder / "metadata.jsonl").read_text().replace("a.png", "z.png")
        (folder / "metadata.jsonl").write_text(text)
    assert Source.open(folder).manifest().merkle_root != before


def test_a_picture_that_changes_after_the_check_is_an_error(folder: Path) -> None:
    source = Source.open(folder)
    assert source.picture(0).getpixel((0, 0)) == (255, 0, 0)
    (folder / "a.png").write_bytes(_png("RGB", (0, 0, 255)))
    with pytest.raises(BadSource, match=r"a\.png: changed after it was checked"):
        source.picture(0)


def test_transparency_lies_over_white() -> None:
    assert decode_picture(_png("RGBA", (255, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    half = decode_picture(_png("RGBA", (255, 0, 0, 128))).getpixel((0, 0))
    assert half == (255, 127, 127)
    assert decode_picture(_png("LA", (0, 0))).getpixel((0, 0)) == (255, 255, 255)
    palette = _png("P", 0, transparency=0)
    assert decode_picture(palette).getpixel((0, 0)) == (255, 255, 255)
    assert decode_picture(_png("L", 0, transparency=0)).getpixel((0, 0)) == (255, 255, 255)


def test_grey_of_16_bits_is_rounded_to_8() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), 32_768, dtype=np.uint16)).save(buffer, "PNG")
    assert Image.open(buffer).mode.startswith("I")
    assert decode_picture(buffer.getvalue()).getpixel((0, 0)) == (128, 128, 128)
    assert decode_picture(_png("1", 1)).getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_and_rotation() -> None:
    buffer = io.BytesIO()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(buffer, "JPEG")
    red, green, blue = decode_picture(buffer.getvalue()).getpixel((0, 0))  # type: ignore[misc]
    assert red > 240
    assert max(green, blue) < 15
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (16, 8)).save(buffer, "JPEG", exif=exif)
    assert decode_picture(buffer.getvalue()).size == (8, 16)


def test_bombs_and_animations_are_refused_before_they_are_decoded() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (9_000, 12_000, 60_000):
        header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))
        with pytest.raises(BadPicture, match="64000000"):
            decode_picture(bomb)
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    with pytest.raises(BadPicture, match="an animation of 2 frames"):
        decode_picture(buffer.getvalue())


def test_a_png_cut_anywhere_or_with_one_wrong_byte_is_found() -> None:
    data = _png("RGB", (1, 2, 3))
    for length in range(len(data) - 4):
        with pytest.raises(BadPicture):
            decode_picture(data[:length])
    for position in range(0, len(data) - 12, 3):  # the last 12 bytes say only that it ends
        with pytest.raises(BadPicture):
            decode_picture(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])


def test_a_jpeg_cut_anywhere_is_found_or_has_all_its_pixels() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    noise.save(buffer, "JPEG")
    whole, data = decode_picture(buffer.getvalue()).tobytes(), buffer.getvalue()
    refused = 0
    for length in range(0, len(data), 5):
        try:
            assert decode_picture(data[:length]).tobytes() == whole
        except BadPicture:
            refused += 1
    assert refused * 5 > len(data) - 50


@pytest.mark.parametrize("name", ["a", "noto-v1", "x_1", "0", "a" * 64, "routers", "console"])
def test_good_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "A", "a.b", "a/b", "../a", "-a", "_a", "a b", "é", "a\n", "a" * 65, "router", "learned_embeds"),
        *("pytorch_lora_weights", "x_pytorch_lora_weights", "my-scheduler", "optimizer1", "checkpoint-5"),
        *("con", "lpt1"),
    ],
)
def test_names_that_would_collide_or_mislead(name: str, folder: Path) -> None:
    with pytest.raises(BadInput, match="source name"):
        check_name(name)
    assert any("source name" in problem for problem in _problems(folder, name=name))
