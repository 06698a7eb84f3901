"""Fidelity of folders: towers from local weights, resizing, labels, floors, the report, command and script."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from promptcdm.cli import main
from promptcdm.errors import BadInput
from promptcdm.features import load_features
from promptcdm.fidelity import fidelity, used_pictures
from promptcdm.fidelity_figures import compare_features, guidance
from promptcdm.inception import inception_network
from promptcdm.picture_folder import PictureFolder
from promptcdm.settings import FidelitySettings
from promptcdm.tensorfile import write_json, write_tensors
from promptcdm.tower import Tower, resized

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "eval" / "fidelity.py"
KEYS = ["kid", "fd", "cmmd", "precision", "recall", "density", "coverage"]


@dataclass(frozen=True)
class MeanColour:
    """Three features: the mean of each channel, and their square. Reads pictures of any size."""

    name: str = "mean-colour"

    def features(self, images: Sequence[Image.Image]) -> NDArray[np.float64]:
        means = np.stack([np.asarray(image, dtype=np.float64).mean((0, 1)) / 255 for image in images])
        return np.concatenate([means, means**2], 1)


def draw(folder: Path, count: int, seed: int = 0, shift: int = 0) -> Path:
    """Pictures of noise around a colour each."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for index in range(count):
        colour = random.integers(40, 180, 3) + shift
        pixels = (colour + random.integers(-20, 20, (12, 12, 3))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return draw(tmp_path / "real", 48, seed=1), draw(tmp_path / "generated", 48, seed=2, shift=50)


@pytest.fixture(scope="session")
def tiny_dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Randomly initialised, in the folder of transformers."""
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("towers") / "tiny-dinov2"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        Dinov2Model(Dinov2Config(**shape, image_size=28, patch_size=14)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_timm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Randomly initialised, in timm's folder."""
    import timm

    folder = tmp_path_factory.mktemp("towers") / "tiny-timm"
    folder.mkdir()
    arguments = {"embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": 28}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("vit_small_patch14_dinov2", num_classes=0, **arguments)
    write_tensors(folder / "model.safetensors", model.state_dict(), {})
    write_json(folder / "config.json", {"architecture": "vit_small_patch14_dinov2", "model_args": arguments})
    return folder


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Randomly initialised, in the folder of transformers."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    folder = tmp_path_factory.mktemp("towers") / "tiny-clip"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = CLIPVisionConfig(**shape, projection_dim=8, image_size=32, patch_size=8)
        CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_open_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Randomly initialised, in open_clip's folder."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    folder = tmp_path_factory.mktemp("towers") / "tiny-open-clip"
    folder.mkdir()
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIP(8, CLIPVisionCfg(**vision), CLIPTextCfg(**text))
    write_tensors(folder / "open_clip_model.safetensors", model.state_dict(), {})
    config = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    write_json(folder / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": preprocess})
    return folder


def picture(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_resizing_is_antialiased_and_not_rounded() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255  # without antialiasing, every fourth column is all of one kind
    small = resized(Image.fromarray(stripes), 16)
    assert small.shape == (3, 16, 16)
    assert (small[:, :, 1:-1] - 127.5).abs().max() < 15
    noise = resized(picture(), 16)
    assert (noise != noise.round()).any()
    assert float(noise.min()) >= 0 and float(noise.max()) <= 255


def test_a_picture_of_the_right_size_is_not_changed() -> None:
    image = picture(size=(16, 16))
    assert torch.equal(resized(image, 16), torch.from_numpy(np.array(image)).permute(2, 0, 1).float())


def test_dinov2_of_transformers_is_the_class_token_after_the_norm(tiny_dinov2: Path) -> None:
    from transformers import AutoModel

    tower = load_features(f"dinov2:{tiny_dinov2}")
    assert isinstance(tower, Tower)
    assert (tower.name, tower.size, tower.published) == ("dinov2:tiny-dinov2", 224, "")
    found = tower.features([picture(), picture(1, (90, 300))])
    assert found.shape == (2, 16) and found.dtype == np.float64
    pixels = resized(picture(), 224)[None] / 255
    pixels = (pixels - torch.tensor(tower.mean)[:, None, None]) / torch.tensor(tower.std)[:, None, None]
    with torch.inference_mode():
        states = AutoModel.from_pretrained(tiny_dinov2)(pixels).last_hidden_state
    np.testing.assert_allclose(found[0], states[0, 0].double().numpy(), atol=1e-5)


def test_timm_and_open_clip_folders_are_read(tiny_timm: Path, tiny_open_clip: Path) -> None:
    images = [picture(), picture(1, (90, 300))]
    dino, clip = load_features(f"dinov2:{tiny_timm}"), load_features(f"clip:{tiny_open_clip}")
    assert isinstance(clip, Tower)
    assert (clip.name, clip.size, clip.mean, clip.std) == (
        "clip:tiny-open-clip",
        32,
        (0.5, 0.5, 0.5),
        (0.25, 0.25, 0.25),
    )
    for tower, width in ((dino, 16), (clip, 8)):
        found = tower.features(images)
        assert found.shape == (2, width) and (found[0] != found[1]).any()
        np.testing.assert_allclose(found[1:], tower.features(images[1:]), atol=1e-5)


def test_clip_of_transformers_is_its_image_embedding(tiny_clip: Path) -> None:
    from transformers import CLIPVisionModelWithProjection

    tower = load_features(f"clip:{tiny_clip}")
    assert isinstance(tower, Tower)
    assert tower.published == ""  # CMMD is of ViT-L/14 at 336 px
    mean, std = (torch.tensor(values)[:, None, None] for values in (tower.mean, tower.std))
    with torch.inference_mode():
        model = CLIPVisionModelWithProjection.from_pretrained(tiny_clip)
        expected = model((resized(picture(), 32)[None] / 255 - mean) / std).image_embeds
    np.testing.assert_allclose(tower.features([picture()]), expected.double().numpy(), atol=1e-5)


@pytest.mark.model
@pytest.mark.parametrize(("classes", "name"), [(1008, "inception-2015"), (1000, "inception-torchvision")])
def test_only_the_inception_of_fid_is_called_so(tmp_path: Path, classes: int, name: str) -> None:
    tensors = inception_network(fid=False).state_dict()
    tensors = {key: tensor.half() for key, tensor in tensors.items() if tensor.is_floating_point()}
    tensors["fc.weight"], tensors["fc.bias"] = torch.zeros(classes, 2048), torch.zeros(classes)
    write_tensors(tmp_path / "weights.safetensors", tensors, {})
    tower = load_features(f"inception:{tmp_path}")
    assert isinstance(tower, Tower)
    assert (tower.name, tower.published) == (name, "FID" if classes == 1008 else "")
    found = tower.features([picture()])
    assert found.shape == (1, 2048) and np.isfinite(found).all()


@pytest.mark.model
def test_the_pools_of_fid_leave_padding_out_and_end_with_the_largest() -> None:
    ours, stock = inception_network(fid=True).eval(), inception_network(fid=False).eval()
    stock.load_state_dict(ours.state_dict())
    x = torch.rand(1, 192, 8, 8)
    with torch.inference_mode():
        found, plain = ours.Mixed_5b(x), stock.Mixed_5b(x)
        inside = F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, stride=1) * 9
        held = F.avg_pool2d(F.pad(torch.ones_like(x), (1, 1, 1, 1)), 3, stride=1) * 9
        expected = ours.Mixed_5b.branch_pool(inside / held)
        torch.testing.assert_close(found[:, :-32], plain[:, :-32])
        torch.testing.assert_close(found[:, -32:], expected)
        torch.testing.assert_close(found[:, -32:, 1:-1, 1:-1], plain[:, -32:, 1:-1, 1:-1])
        assert not torch.allclose(found[:, -32:, 0], plain[:, -32:, 0])
        y = torch.rand(1, 2048, 4, 4)
        largest = ours.Mixed_7c.branch_pool(F.max_pool2d(y, 3, 1, 1))
        torch.testing.assert_close(ours.Mixed_7c(y)[:, -192:], largest)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path, tiny_clip: Path, tiny_timm: Path) -> None:
    write_tensors(tmp_path / "other.safetensors", {"fc.weight": torch.zeros(10, 2)}, {})
    write_tensors(tmp_path / "half.safetensors", {"fc.weight": torch.zeros(1008, 2)}, {})
    for name, words in {
        "resnet:x": "are not known; accepted are concept-tower, instance-tower, inception:FILE",
        "inception": "are not known",
        f"inception:{tmp_path / 'none'}": "no such file or folder",
        f"inception:{tmp_path}": "2 safetensors files",
        f"inception:{tmp_path / 'other.safetensors'}": "fc.weight has 10 rows",
        f"inception:{tmp_path / 'half.safetensors'}": "not those of an Inception v3",
        f"dinov2:{tmp_path}": "config.json: cannot be read",
        f"dinov2:{tiny_clip}": "of the kind clip_vision_model",
        f"clip:{tiny_timm}": "of the kind None",
    }.items():
        with pytest.raises(BadInput, match=words):
            load_features(name)
    write_json(tmp_path / "config.json", {"architecture": "vit_small_patch14_dinov2"})
    (tmp_path / "other.safetensors").unlink()
    with pytest.raises(BadInput, match="does not fit its config"):
        load_features(f"dinov2:{tmp_path}")


def test_weights_that_lack_a_tensor_are_not_filled_by_chance(tmp_path: Path, tiny_dinov2: Path) -> None:
    from promptcdm.tensorfile import read_tensors

    tensors, _ = read_tensors(tiny_dinov2 / "model.safetensors")
    tensors.pop("layernorm.weight")
    write_tensors(tmp_path / "model.safetensors", tensors, {"format": "pt"})
    (tmp_path / "config.json").write_bytes((tiny_dinov2 / "config.json").read_bytes())
    with pytest.raises(BadInput, match="1 tensors are missing"):
        load_features(f"dinov2:{tmp_path}")


def test_the_report_holds_what_its_figures_depend_on(folders: tuple[Path, Path], tmp_path: Path) -> None:
    report = fidelity(*folders, MeanColour(), tmp_path / "out" / "fidelity.json")
    record = json.loads((tmp_path / "out" / "fidelity.json").read_text(encoding="utf-8"))
    assert record == json.loads(json.dumps(report.record()))
    assert list(report.figures) == KEYS and set(record["figures"]) == set(KEYS)
    assert record["figures"]["fd"]["label"] == "FD(mean-colour)"
    assert record["figures"]["cmmd"]["label"] == "CMMD(mean-colour)"
    assert (record["pictures"], record["real_to_real_pictures"]) == (48, 24)
    assert record["settings"]["seed"] == 0
    assert {"python", "promptcdm", "numpy", "torch"} <= set(record["versions"])
    sums = [record["folders"][name]["sha256"] for name in ("real", "generated")]
    assert len(sums[0]) == 64 and sums[0] != sums[1]
    for figure in record["figures"].values():
        assert figure["interval_95"][0] <= figure["value"] <= figure["interval_95"][1]
        assert figure["excess"] == figure["generated_at_its_size"] - figure["real_to_real"]
        assert figure["interval_95"][0] >= 0 or figure["label"].startswith("KID")
    # The generated are 50 levels brighter.
    assert report.figures["kid"].interval[0] > 0
    assert report.figures["fd"].excess > 0 > report.figures["coverage"].excess


def test_a_folder_against_its_like_shows_no_excess(tmp_path: Path) -> None:
    like = draw(tmp_path / "real", 60, seed=1), draw(tmp_path / "generated", 60, seed=2)
    report = fidelity(*like, MeanColour())
    low, high = report.figures["kid"].interval
    assert low < 0 < high
    figure = report.figures["fd"]
    assert figure.floor_range[0] <= figure.floor <= figure.floor_range[1]
    assert abs(figure.excess) < figure.floor


def test_fid_is_the_name_of_inceptions_figure_alone(folders: tuple[Path, Path]) -> None:
    def mean_colour(pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(2).mean(2)

    whole = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    plain = Tower("inception-torchvision", mean_colour, 8, *whole, device="cpu", weights_sha256="0")
    for tower, labels in (
        (plain, ("KID(inception-torchvision)", "FD(inception-torchvision)", "CMMD(inception-torchvision)")),
        (replace(plain, name="i", published="FID"), ("KID", "FID", "CMMD(i)")),
        (replace(plain, name="c", published="CMMD"), ("KID(c)", "FD(c)", "CMMD")),
    ):
        report = fidelity(*folders, tower, settings=FidelitySettings(splits=1))
        assert tuple(report.labels[key] for key in ("kid", "fd", "cmmd")) == labels
        assert report.features["weights_sha256"] == "0"


def test_unequal_numbers_need_a_subsample_which_the_seed_draws(tmp_path: Path) -> None:
    real, generated = draw(tmp_path / "real", 90, seed=1), draw(tmp_path / "generated", 45, seed=2)
    with pytest.raises(BadInput, match="90 real and 45 generated pictures; give equally many, or draw N"):
        fidelity(real, generated, MeanColour())
    chosen = FidelitySettings(subsample=44)
    report = fidelity(real, generated, MeanColour(), settings=chosen)
    assert (report.pictures, report.floor_pictures) == (44, 44)  # there are twice as many real ones
    assert report.record() == fidelity(real, generated, MeanColour(), settings=chosen).record()
    other = fidelity(real, generated, MeanColour(), settings=replace(chosen, seed=1))
    assert other.figures["fd"].value != report.figures["fd"].value
    for n, words in (
        (46, "subsample is 46"),
        (-1, "subsample is -1"),
        (39, "39 pictures; fidelity needs 40"),
    ):
        with pytest.raises(BadInput, match=words):
            fidelity(real, generated, MeanColour(), settings=FidelitySettings(subsample=n))


def test_drawn_pictures_are_each_drawn_once() -> None:
    real, generated = used_pictures(200, 120, FidelitySettings(subsample=80))
    assert len(set(real)) == len(real) == 160 and len(set(generated)) == len(generated) == 80


def test_copies_of_real_pictures_are_counted(tmp_path: Path) -> None:
    real, generated = draw(tmp_path / "real", 40, seed=1), draw(tmp_path / "generated", 40, seed=2)
    (generated / "000.png").write_bytes((real / "007.png").read_bytes())
    assert fidelity(real, generated, MeanColour()).in_both == 1


def test_the_grid_that_generate_writes_is_no_picture(tmp_path: Path) -> None:
    folder = PictureFolder.open(draw(tmp_path / "out", 3))
    picture(9).save(tmp_path / "out" / "grid.png")
    assert (
        len(PictureFolder.open(tmp_path / "out").without_grids()) == 4
    )  # no record: somebody's picture of a grid
    (tmp_path / "out" / folder.files[0]).with_suffix(".json").write_text("{}")
    kept = PictureFolder.open(tmp_path / "out").without_grids()
    assert (kept.files, kept.sha256) == (folder.files, folder.sha256)


def test_small_numbers_are_told_of() -> None:
    few, many = guidance(400, 2048, 200), guidance(30_000, 2048, 30_000)
    assert any("N = 400 is below the 2048 features" in line and "mislead" in line for line in few)
    assert any("at n = 200" in line for line in few)
    assert len(many) == 2 and "KID" in many[0]


def test_the_floor_of_a_collapsed_generator_is_that_of_the_real_pictures() -> None:
    random = np.random.default_rng(0)
    modes = 3 * random.standard_normal((4, 8))
    real = np.concatenate([mode + random.standard_normal((20, 8)) for mode in modes])
    collapsed = modes[0] + random.standard_normal((80, 8))
    found = compare_features(real, collapsed)
    assert found["kid"].interval[0] > 0 and found["fd"].excess > 5 * found["fd"].floor
    assert found["recall"].value < 0.4 < found["recall"].floor
    with pytest.raises(BadInput, match="neighbours is 40; 80 pictures allow 1 to 39"):
        compare_features(real, collapsed, neighbours=40)
    with pytest.raises(BadInput, match="splits is 0"):
        compare_features(real, collapsed, splits=0)


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "fidelity", *map(str, arguments)])
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


def test_command_and_script_say_the_same(
    folders: tuple[Path, Path], tiny_dinov2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real, generated = folders
    given = ["--real", real, "--generated", generated, "--features", f"dinov2:{tiny_dinov2}", "--splits", 2]
    out = tmp_path / "command.json"
    code, printed, _ = _run(capsys, *given, "--out", out)
    assert code == 0
    assert "FD(dinov2:tiny-dinov2)" in printed and "FID" not in printed
    assert "real to real, n = 24" in printed and "small-N" not in printed and "below 10 times" in printed
    script: dict[str, Any] = runpy.run_path(str(SCRIPT))
    run_script: Callable[[list[str]], int] = script["main"]
    assert run_script([*map(str, given), "--out", str(tmp_path / "script.json")]) == 0
    assert capsys.readouterr().out == printed
    assert (tmp_path / "script.json").read_bytes() == out.read_bytes()


def test_wrong_input_is_one_line(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real, generated = folders
    (tmp_path / "empty").mkdir()
    few = draw(tmp_path / "few", 5)
    for arguments, words in (
        ((tmp_path / "none", generated, "clip:x"), "none: no such folder"),
        ((real, tmp_path / "empty", "clip:x"), "empty: holds no picture"),
        ((real, few, "clip:x"), "48 real and 5 generated pictures"),
        ((few, few, "clip:x"), "5 pictures; fidelity needs 40"),
        ((real, generated, "resnet"), "features 'resnet' are not known"),
        ((real, generated, "clip:nothing"), "config.json: cannot be read"),
        ((real, generated, "clip:x", "--neighbours", "24"), "neighbours is 24; 48 pictures allow 1 to 23"),
        ((real, generated, "clip:x", "--batch-size", "0"), "batch_size is 0"),
        ((real, generated, "clip:x", "--device", "gpu"), "device 'gpu'"),
    ):
        flags = ("--real", "--generated", "--features")
        named = [part for pair in zip(flags, arguments[:3], strict=True) for part in pair]
        code, out, err = _run(capsys, *named, *arguments[3:])
        assert (code, out) == (2, ""), words
        assert err.startswith("promptcdm: ") and err.count("\n") == 1 and words in err, err
    (generated / "003.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match=r"003\.png: is not a picture that can be read"):
        fidelity(real, generated, MeanColour())
