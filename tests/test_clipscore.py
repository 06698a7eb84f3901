"""CLIPScore: the formula on known vectors, a tiny random open_clip model by folder and by name, the command."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluated import CAPTIONS, evaluated
from PIL import Image
from torch import Tensor

from promptcdm.cli import main
from promptcdm.clipscore import PREFIX, ClipReport, clipscore
from promptcdm.errors import BadInput, BadQuestions, RunFailed
from promptcdm.evaluation_report import render_evaluation
from promptcdm.evaluation_run import read_run
from promptcdm.open_clip_model import load_open_clip
from promptcdm.question_files import read_texts
from promptcdm.questions import Text
from promptcdm.tensorfile import write_json, write_tensors

VISION = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
CONFIG = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT}


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Randomly initialised, with open_clip's own words, in its folder."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    folder = tmp_path_factory.mktemp("clip") / "tiny-words"
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIP(8, CLIPVisionCfg(**VISION), CLIPTextCfg(**TEXT))  # type: ignore[arg-type]
    write_tensors(folder / "open_clip_model.safetensors", model.state_dict(), {})
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    write_json(folder / "open_clip_config.json", {"model_cfg": CONFIG, "preprocess_cfg": preprocess})
    return folder


@pytest.fixture
def named(tmp_path: Path) -> Iterator[str]:
    """The same shape under a name that open_clip knows."""
    import open_clip.factory as factory

    (tmp_path / "tiny-named.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    kept = list(factory._MODEL_CONFIG_PATHS), dict(factory._MODEL_CONFIGS)
    factory.add_model_config(tmp_path / "tiny-named.json")
    yield "tiny-named"
    factory._MODEL_CONFIG_PATHS[:] = kept[0]
    factory._rescan_model_configs()


class Angles:
    """Pictures and texts as angles: cos of two is the cosine of their difference."""

    name = "angles"
    weights_sha256 = "0" * 64

    def __init__(self, degrees: dict[str, float]) -> None:
        self.degrees, self.asked = degrees, list[str]()

    def pictures(self, images: Sequence[Image.Image]) -> Tensor:
        return self._unit([float(image.getpixel((0, 0))[0]) for image in images])  # type: ignore[index]

    def texts(self, texts: Sequence[str]) -> Tensor:
        self.asked += texts
        return self._unit([self.degrees[text.removeprefix(PREFIX)] for text in texts])

    def _unit(self, degrees: Sequence[float]) -> Tensor:
        radians = torch.tensor(degrees) * math.pi / 180
        return torch.stack([radians.cos(), radians.sin()], 1)


def pictures(folder: Path, degrees: dict[str, int]) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    for id, angle in degrees.items():
        Image.new("RGB", (8, 8), (angle, 0, 0)).save(folder / f"{id}.png")
    return {id: folder / f"{id}.png" for id in degrees}


def scored(folder: Path, texts: Sequence[Text], at: dict[str, int], said: dict[str, float]) -> ClipReport:
    model: Any = Angles(said)
    report = clipscore(texts, pictures(folder, at), model)
    assert all(text.startswith("A photo depicts ") for text in model.asked)
    return report


TEXTS = (Text("a", "one"), Text("b", "two"), Text("c", "one"))


def test_the_formula_on_known_angles(tmp_path: Path) -> None:
    report = scored(tmp_path, TEXTS, {"a": 0, "b": 60, "c": 150}, {"one": 60, "two": 60})
    # 2.5 cos 60, 2.5 cos 0, and cos 90 is 0.
    assert report.by_caption == pytest.approx({"a": 1.25, "b": 2.5, "c": 0}, abs=1e-6)
    assert report.value == pytest.approx(1.25)
    assert scored(tmp_path, TEXTS[:1], {"a": 200}, {"one": 0}).value == 0  # below 0 is 0


def test_other_captions_are_the_judge_that_sees_nothing(tmp_path: Path) -> None:
    report = scored(tmp_path, TEXTS, {"a": 0, "b": 90, "c": 0}, {"one": 0, "two": 90})
    assert (report.value, report.another, report.prefers_own) == pytest.approx((2.5, 0, 1), abs=1e-6)
    swapped = scored(tmp_path, TEXTS, {"a": 90, "b": 0, "c": 90}, {"one": 0, "two": 90})
    assert (swapped.value, swapped.another, swapped.prefers_own) == pytest.approx((0, 2.5, 0), abs=1e-6)
    blind = scored(tmp_path, TEXTS, {"a": 10, "b": 90, "c": 30}, {"one": 45, "two": 45})
    assert blind.value == pytest.approx(blind.another) and blind.prefers_own == 0.5
    alone = scored(tmp_path, TEXTS[:1], {"a": 0}, {"one": 0})
    assert alone.another is None and alone.prefers_own is None and alone.table()[1][3] == ""


def test_a_picture_that_cannot_be_read_is_named_and_left_out(tmp_path: Path) -> None:
    images = pictures(tmp_path, {"a": 0, "b": 90, "c": 0})
    images["b"].write_bytes(b"no picture")
    images["c"].unlink()
    model: Any = Angles({"one": 0, "two": 0})
    report = clipscore(TEXTS, images, model)
    assert report.by_caption == {"a": 2.5} and [failure.id for failure in report.failures] == ["b", "c"]
    record = json.loads(report.save(tmp_path / "clip.json").read_text(encoding="utf-8"))
    assert record["scores"]["CLIPScore(angles)"]["coverage"] == pytest.approx(1 / 3)
    images["a"].unlink()
    with pytest.raises(RunFailed, match="none of 3 pictures could be read"):
        clipscore(TEXTS, images, model)
    with pytest.raises(BadQuestions, match="not in the image map: b, c"):
        clipscore(TEXTS, {"a": tmp_path}, model)


def test_a_folder_and_a_name_with_weights_are_the_same_model(
    tiny_clip: Path, named: str, tmp_path: Path
) -> None:
    folder = load_open_clip(str(tiny_clip))
    by_name = load_open_clip(named, tiny_clip / "open_clip_model.safetensors")
    assert (folder.name, by_name.name) == ("tiny-words", "tiny-named")
    assert folder.weights_sha256 == by_name.weights_sha256
    texts = ["a red cup", "two cats"]
    assert torch.equal(folder.texts(texts), by_name.texts(texts))
    image = Image.new("RGB", (50, 40), "red")
    # The name says nothing of the scale, so it is OpenAI's, and the folder's own is another.
    assert not torch.equal(folder.pictures([image]), by_name.pictures([image]))
    for found in (folder.texts(texts), folder.pictures([image, image])):
        assert found.shape == (2, 8) and torch.allclose(found.norm(dim=1), torch.ones(2))


def test_batches_change_nothing(tiny_clip: Path) -> None:
    model = load_open_clip(str(tiny_clip))
    texts = [f"{n} cats" for n in range(70)]
    assert torch.allclose(model.texts(texts)[-1], model.texts(texts[-1:])[0], atol=1e-6)


def test_what_cannot_be_loaded_is_refused(tiny_clip: Path, named: str, tmp_path: Path) -> None:
    weights = tiny_clip / "open_clip_model.safetensors"
    write_tensors(tmp_path / "other.safetensors", {"positional_embedding": torch.zeros(4, 4)}, {})
    for model, file, words in (
        ("nothing", None, "is no folder of open_clip"),
        ("ViT-B-3", weights, "open_clip has no such name; near it ViT-B-16"),
        (named, tmp_path / "none.safetensors", "is no safetensors file"),
        (named, tiny_clip / "open_clip_config.json", "is no safetensors file"),
        (named, tmp_path / "other.safetensors", "cannot be loaded"),
        ("roberta-ViT-B-32", weights, "its text tower has files of its own"),
    ):
        with pytest.raises(BadInput, match=words):
            load_open_clip(model, file)


def test_the_same_by_command_and_in_the_report(
    tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = evaluated(tmp_path / "run.json", range(8))
    folder = tmp_path / "run-pictures"
    texts = [{"id": f"p{n}", "caption": caption} for n, caption in enumerate(CAPTIONS)]
    (tmp_path / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    names = {f"p{n}": f"run-pictures/{n:04d}.png" for n in range(len(CAPTIONS))}
    (tmp_path / "map.json").write_text(json.dumps(names), encoding="utf-8")
    out = tmp_path / "run.clipscore.json"
    command = ["evaluate", "clipscore", "--texts", tmp_path / "texts.json", "--images", tmp_path / "map.json"]
    with pytest.raises(SystemExit) as stop:
        main([str(part) for part in [*command, "--model", tiny_clip, "--out", out]])
    assert not stop.value.code
    assert capsys.readouterr().out.splitlines()[1].startswith("CLIPScore(tiny-words)  ")
    score = json.loads(out.read_text(encoding="utf-8"))["scores"]["CLIPScore(tiny-words)"]
    images = {id: tmp_path / file for id, file in names.items()}
    whole = clipscore(read_texts(tmp_path / "texts.json"), images, load_open_clip(str(tiny_clip)))
    assert score["by_caption"] == pytest.approx(dict(whole.by_caption))
    html = render_evaluation([read_run(result)])
    assert "CLIPScore(tiny-words)" in html and f"another caption {whole.another:.2f}" in html
    Image.new("RGB", (9, 9)).save(folder / "0000.png")
    evaluated(result, range(8))
    with pytest.raises(BadInput, match="other pictures under 1 of their ids"):
        read_run(result)


def test_texts_come_from_every_kind_of_file(tmp_path: Path) -> None:
    question = {"id": "a", "caption": "one", "question": "is it?", "choices": ["yes"], "answer": "yes"}
    files = {
        "texts.json": json.dumps([{"id": "a", "caption": "one"}]),
        "texts.jsonl": json.dumps({"id": "a", "caption": "one"}) + "\n",
        "questions.json": json.dumps([question, question | {"question": "or not?"}]),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_texts(tmp_path / name) == (Text("a", "one"),), name
    (tmp_path / "lines.txt").write_text("one\ntwo\n", encoding="utf-8")
    assert read_texts(tmp_path / "lines.txt") == (Text("lines_0", "one"), Text("lines_1", "two"))
    with pytest.raises(BadQuestions, match="cannot be read"):
        read_texts(tmp_path / "none.json")
