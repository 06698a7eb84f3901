"""What the tests share: no network, tiny random Stable Diffusions of three architectures, and drawn sources.

The tiny pipelines are real ones, built by diffusers from a seed: 32 px pictures, 8x8 latents, a byte-level
CLIP vocabulary. Their pictures are noise; what is tested with them is the mechanics.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from promptcdm.backbone import Backbone
    from promptcdm.source import Source

os.environ["HF_HUB_OFFLINE"] = (
    "1"  # read when the libraries are imported, and by the commands that tests start
)

TOY_LICENSE = "CC0-1.0"
TOY_SHAPES = ("square", "circle", "triangle")
WORD_END = "</w>"
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 24  # tokens of a prompt
WIDTH = 16  # of a text encoder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what loads a model, so that `make quick` can leave it out."""
    for item in items:
        names = getattr(item, "fixturenames", ())
        if any(name.startswith("tiny") for name in names):
            item.add_marker("model")


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Make every connection to another machine fail, and say so."""
    connect = socket.socket.connect

    def only_local(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and str(address[0]) not in ("127.0.0.1", "::1"):
            raise AssertionError(f"a test connects to {address}; tests use no network")
        connect(self, address)

    def no_names(host: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError(f"a test looks up {host}; tests use no network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", only_local)
        patch.setattr(socket, "getaddrinfo", no_names)
        yield


@pytest.fixture
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a write be done before it is on the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def import_script(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str], ModuleType]:
    """Return a function that imports the module of this name from a folder of scripts.

    Several folders have a train.py: what an earlier test imported from another one is put aside.
    """

    def imported(folder: Path, name: str) -> ModuleType:
        monkeypatch.syspath_prepend(str(folder))
        for path in folder.glob("*.py"):
            there = sys.modules.get(path.stem)
            if there is not None and Path(there.__file__ or "") != path:
                monkeypatch.delitem(sys.modules, path.stem)
        return importlib.import_module(name)

    return imported


@pytest.fixture
def files_read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every path whose bytes are read from now on, in order."""
    read = Path.read_bytes
    paths: list[Path] = []

    def noted(path: Path) -> bytes:
        paths.append(path)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", noted)
    return paths


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs a command in an empty folder: exit code, output, error output."""
    from promptcdm.cli import main

    monkeypatch.chdir(tmp_path)

    def command(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return command


@pytest.fixture
def birds(tmp_path: Path, toy_source: Callable[..., Path]) -> Source:
    """Six red shapes."""
    from promptcdm.source import Source

    return Source.open(toy_source(tmp_path, "birds", "red"))


@pytest.fixture
def backbone(tiny_sd1: Path) -> Backbone:
    """The tiny Stable Diffusion 1, this test's own."""
    from promptcdm.backbone import Backbone

    return Backbone.load(tiny_sd1, device="cpu")


@pytest.fixture
def toy_source() -> Callable[..., Path]:
    """Return a function (parent, name, colour) -> folder of a source of six drawn 64 px pictures."""
    return draw_source


def draw_source(parent: Path, name: str, colour: str, *, license: str = TOY_LICENSE) -> Path:
    """Draw two sizes of three shapes in one colour, with captions and licence facts."""
    folder = parent / name
    folder.mkdir(parents=True)
    rows = []
    for shape in TOY_SHAPES:
        for size, margin in (("large", 6), ("small", 20)):
            file = f"{size}-{shape}.png"
            _draw(shape, colour, margin).save(folder / file)
            rows.append({"file_name": file, "text": f"a {size} {colour} {shape}"})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")
    facts = {"license": license, "author": f"{name} people", "origin": "drawn by the tests"}
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in facts.items())
    (folder / "source.toml").write_text(text, encoding="utf-8")
    return folder


def _draw(shape: str, colour: str, margin: int) -> Image.Image:
    picture = Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(picture)
    low, high = margin, 63 - margin
    if shape == "square":
        draw.rectangle((low, low, high, high), fill=colour)
    elif shape == "circle":
        draw.ellipse((low, low, high, high), fill=colour)
    else:
        draw.polygon([(low, high), (high, high), (31, low)], fill=colour)
    return picture


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function (kind) -> folder; kinds are "sd1" (epsilon), "sd2" (v_prediction) and "sdxl"."""
    root = tmp_path_factory.mktemp("tiny")

    def folder(kind: str) -> Path:
        if not (root / kind).exists():
            build_tiny(kind, root / kind)
        return root / kind

    return folder


@pytest.fixture(scope="session")
def tiny_sd1(tiny_pipeline: Callable[[str], Path]) -> Path:
    """Stable Diffusion 1: one text encoder, epsilon."""
    return tiny_pipeline("sd1")


@pytest.fixture(scope="session")
def tiny_sd2(tiny_pipeline: Callable[[str], Path]) -> Path:
    """Stable Diffusion 2: one text encoder, v_prediction."""
    return tiny_pipeline("sd2")


@pytest.fixture(scope="session")
def tiny_sdxl(tiny_pipeline: Callable[[str], Path]) -> Path:
    """Stable Diffusion XL: two text encoders, added time and text embeddings."""
    return tiny_pipeline("sdxl")


def build_tiny(kind: str, folder: Path, seed: int = 0) -> None:
    """Save a randomly initialised pipeline; the same seed gives the same weights."""
    import diffusers
    import torch
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    make_tokenizer(folder / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = diffusers.UNet2DConditionModel(**_unet_config(kind))
        vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 8, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=32,
        )
        parts: dict[str, Any] = {"text_encoder": CLIPTextModel(_text_config(kind))}
        if kind == "sdxl":
            parts["text_encoder_2"] = CLIPTextModelWithProjection(_text_config(kind))
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction" if kind == "sd2" else "epsilon",
    )
    parts |= {
        name.replace("text_encoder", "tokenizer"): _tokenizer(folder / "tokenizer") for name in list(parts)
    }
    if kind == "sdxl":
        pipe = diffusers.StableDiffusionXLPipeline(vae=vae, unet=unet, scheduler=scheduler, **parts)
    else:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipe = diffusers.StableDiffusionPipeline(vae=vae, unet=unet, scheduler=scheduler, **parts)
    pipe.save_pretrained(folder, safe_serialization=True)


def _unet_config(kind: str) -> dict[str, Any]:
    config: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": WIDTH,
    }
    if kind == "sd2":
        config["use_linear_projection"] = True
    if kind == "sdxl":
        config |= {
            "cross_attention_dim": 2 * WIDTH,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": WIDTH + 6 * 4,
        }
    return config


def _text_config(kind: str) -> Any:
    from transformers import CLIPTextConfig

    tokens = len(_vocabulary())
    return CLIPTextConfig(
        vocab_size=tokens,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_LENGTH,
        hidden_act="gelu" if kind != "sd1" else "quick_gelu",
        bos_token_id=tokens - 2,
        eos_token_id=tokens - 1,
        pad_token_id=tokens - 1,
    )


def make_tokenizer(folder: Path) -> None:
    """Write a CLIP vocabulary without merges, in the files that every transformers version reads."""
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(_vocabulary()), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_LENGTH, "bos_token": BEGIN}
    config |= {"eos_token": END, "unk_token": END, "pad_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _vocabulary() -> dict[str, int]:
    # CLIP's alphabet: one printable character a byte, and the same again at the end of a word.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [256 + i for i in range(256 - len(printable))]
    alphabet = [chr(code) for code in printable + others]
    tokens = [*alphabet, *(character + WORD_END for character in alphabet), BEGIN, END]
    return {token: i for i, token in enumerate(tokens)}
