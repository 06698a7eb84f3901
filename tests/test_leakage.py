"""Leakage through models: predictions on fixed noise, membership with its control, folders, the command."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from promptcdm.adapter import Adapter
from promptcdm.backbone import Backbone
from promptcdm.cli import main
from promptcdm.composed_unet import ComposedUNet
from promptcdm.errors import BadInput
from promptcdm.fixed_noise import denoising_errors, noise_of, text_noise
from promptcdm.leakage import leakage
from promptcdm.levers import Levers
from promptcdm.made_pictures import made_pictures, picture_sources
from promptcdm.membership import Probe, check_held_out, drawn, members_of, membership, overfitted, probe_of
from promptcdm.picture_folder import PictureFolder
from promptcdm.settings import LeakageSettings, TrainSettings
from promptcdm.source import Source
from promptcdm.sscd import load_sscd
from promptcdm.store import AdapterStore
from promptcdm.tensorfile import write_json
from promptcdm.train import train_adapter

FAST = LeakageSettings(noise_levels=3, control_steps=2, control_pictures=20)
CAPTIONS = ["a red bird", "two cars", "a"]


@dataclass(frozen=True)
class MeanColour:
    """Three features, and a constant so that none is zero."""

    name: str = "mean-colour"

    def features(self, images: Sequence[Image.Image]) -> NDArray[np.float64]:
        means = np.stack([np.asarray(image, dtype=np.float64).mean((0, 1)) / 255 for image in images])
        return np.concatenate([means, np.full((len(means), 1), 0.1)], 1)


def draw(folder: Path, count: int, colour: tuple[int, int, int], seed: int = 0) -> Path:
    """A source of noise around a colour, with captions."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        pixels = np.clip(np.array(colour) + random.integers(-60, 60, (32, 32, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:02d}.png")
        rows.append(
            json.dumps({"file_name": f"{index:02d}.png", "text": f"picture {index} of {folder.name}"})
        )
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "source.toml").write_text('license = "CC0-1.0"\n', encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def backbone(tiny_pipeline: Callable[[str], Path]) -> Backbone:
    return Backbone.load(tiny_pipeline("sd1"), device="cpu")


@pytest.fixture(scope="module")
def trained(tiny_sd1: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AdapterStore]:
    """Folders of two sources, held-out pictures of one of them, and a store with its adapter."""
    root = tmp_path_factory.mktemp("leakage")
    reds = draw(root / "sources" / "reds", 24, (200, 60, 60), seed=1)
    draw(root / "sources" / "blues", 24, (60, 60, 200), seed=2)
    draw(root / "held-out" / "reds", 22, (200, 60, 60), seed=3)
    store = AdapterStore(root / "adapters")
    settings = TrainSettings(steps=3, rank=2, mixed_precision="no")
    store.add(train_adapter(Source.open(reds), Backbone.load(tiny_sd1, device="cpu"), settings))
    return root, store


def latents(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def test_the_error_of_the_bare_composition_is_the_unets(backbone: Backbone, tiny_sd1: Path) -> None:
    x_0 = latents()
    with closing(ComposedUNet(backbone, [], router="uniform", guidance_scale=1)) as composed:
        errors = denoising_errors(composed, x_0, CAPTIONS, [100, 700], seed=5)
    assert errors.shape == (3, 2)
    embeds = backbone.encode_prompts(CAPTIONS).embeds
    for k, t in enumerate([700, 100]):  # noise falls
        a, noise = backbone.alphas_cumprod[t], noise_of((4, 8, 8), 5, k)
        x_t = a.sqrt() * x_0 + (1 - a).sqrt() * noise
        with torch.no_grad():
            eps = backbone.unet(x_t, t, embeds).sample
        torch.testing.assert_close(errors[:, k], (eps - noise).square().mean((1, 2, 3)), rtol=1e-4, atol=1e-5)


def test_every_picture_meets_the_same_noise_in_any_batch(backbone: Backbone) -> None:
    x_0 = latents()
    with closing(ComposedUNet(backbone, [], router="uniform", guidance_scale=1)) as composed:
        errors = denoising_errors(composed, x_0, CAPTIONS, [100, 700])
        turned = denoising_errors(composed, x_0.flip(0), CAPTIONS[::-1], [700, 100], batch_size=2)
    torch.testing.assert_close(turned, errors.flip(0), rtol=1e-4, atol=1e-5)
    assert not torch.equal(noise_of((2,), 0, 1), noise_of((2,), 0, 2))


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_the_text_noise_is_the_norm_of_what_the_caption_changes(
    tiny_pipeline: Callable[[str], Path], kind: str
) -> None:
    backbone = Backbone.load(tiny_pipeline(kind), device="cpu")
    with closing(ComposedUNet(backbone, [], router="uniform", guidance_scale=2)) as composed:
        found = text_noise(composed, [*CAPTIONS, ""], (4, 8, 8), draws=2, batch_size=3)
    assert found.shape == (4,) and (found[:3] > 0).all()
    if kind != "sdxl":  # there the empty text is zeros, which no caption encodes to
        assert found[3] == 0
    if kind == "sd1":
        told, bare = (backbone.encode_prompts([text]).embeds for text in (CAPTIONS[0], ""))
        norms = []
        for k in range(2):
            x_t = noise_of((4, 8, 8), 0, k)[None]
            with torch.no_grad():
                eps = [backbone.unet(x_t, 999, embeds).sample for embeds in (told, bare)]
            norms.append((eps[0] - eps[1]).norm())
        torch.testing.assert_close(found[0], torch.stack(norms).mean(), rtol=1e-3, atol=1e-5)


def test_guidance_is_refused_for_errors_and_needed_for_text_noise(backbone: Backbone) -> None:
    with (
        closing(ComposedUNet(backbone, [], router="uniform", guidance_scale=2)) as guided,
        pytest.raises(BadInput, match="guidance_scale is 2"),
    ):
        denoising_errors(guided, latents(), CAPTIONS, [5])
    with closing(ComposedUNet(backbone, [], router="uniform", guidance_scale=1)) as plain:
        with pytest.raises(BadInput, match="need one above 1"):
            text_noise(plain, CAPTIONS, (4, 8, 8))
        with pytest.raises(BadInput, match="3 pictures and 2 captions"):
            denoising_errors(plain, latents(), CAPTIONS[:2], [5])


def test_the_row_without_text_is_the_adapters_own(trained: tuple[Path, AdapterStore], tiny_sd1: Path) -> None:
    backbone = Backbone.load(tiny_sd1, device="cpu")
    adapter = trained[1].load("reds")
    large = Adapter(
        adapter.source,
        {name: tensor * 40 for name, tensor in adapter.lora.items()},
        adapter.prompt,
        adapter.statistics,
        adapter.record,
        adapter.manifest,
        adapter.train_log,
    )
    moved = []
    for branch in ("adapter", "backbone"):
        levers = Levers(unconditional_from=branch)
        with closing(
            ComposedUNet(backbone, [large], router="uniform", levers=levers, guidance_scale=2)
        ) as composed:
            moved.append(text_noise(composed, ["", "a red bird"], (4, 8, 8), draws=1))
    assert moved[0][0] == 0 and moved[1][0] > 0  # the empty caption changes nothing, the adapter does


def test_a_model_that_knows_the_members_is_found_out_and_the_backbone_is_not(
    backbone: Backbone, trained: tuple[Path, AdapterStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = trained[1].load("reds")
    members, others = (Probe(latents(40) + shift, ("a",) * 40) for shift in (0, 1))
    random = np.random.default_rng(0)

    def known(
        _backbone: Backbone, adapters: Sequence[Adapter], group: Probe, _settings: LeakageSettings
    ) -> NDArray[np.float64]:
        easy = bool(adapters) and group is members
        return np.exp(random.standard_normal((40, 3)) * 0.1 - easy)

    monkeypatch.setattr("promptcdm.membership._errors", known)
    found = membership(adapter, members, others, backbone, FAST)
    assert found.scores["loss"].auc > 0.99 and found.scores["calibrated"].tpr > 0.9
    assert not found.scores["blind"].found or found.scores["blind"].auc < 0.7
    assert found.text_noise == pytest.approx((found.text_noise[1],) * 2)  # the same captions
    assert found.scores["text_noise"].auc == 0.5


def test_members_are_what_the_manifest_names_and_held_out_is_what_it_does_not(
    trained: tuple[Path, AdapterStore], tmp_path: Path
) -> None:
    root, store = trained
    adapter = store.load("reds")
    source, others = Source.open(root / "sources" / "reds"), Source.open(root / "held-out" / "reds")
    assert len(members_of(adapter, source)) == 24
    check_held_out(others, adapter, source)
    with pytest.raises(BadInput, match="0 of its 22 pictures are in the adapter's manifest of 24"):
        members_of(adapter, others)
    with pytest.raises(BadInput, match=r"24 pictures were trained on, such as 00\.png"):
        check_held_out(source, adapter, source)
    with pytest.raises(BadInput, match="3 held-out pictures; give 20"):
        check_held_out(drawn(others, 3, 0), adapter, source)
    assert len(members_of(replace(adapter, manifest=None), others)) == 22


def test_drawn_pictures_follow_the_seed_and_keep_their_order(trained: tuple[Path, AdapterStore]) -> None:
    source = Source.open(trained[0] / "sources" / "reds")
    files = [item.file for item in drawn(source, 10, 3).items]
    assert len(files) == 10 and files == sorted(files)
    assert files == [item.file for item in drawn(source, 10, 3).items]
    assert files != [item.file for item in drawn(source, 10, 4).items]
    assert drawn(source, 24, 0) is source


def test_the_control_is_trained_on_few_members(
    backbone: Backbone, trained: tuple[Path, AdapterStore]
) -> None:
    source = Source.open(trained[0] / "sources" / "reds")
    control, few = overfitted(source, backbone, FAST)
    assert len(few) == control.record.items == 20 and control.record.settings["targets"] == "wide"
    probe = probe_of(few, backbone)
    assert probe.latents.shape == (20, 4, 8, 8) and probe.captions[0].startswith("picture ")


def test_both_parts_are_in_the_report_and_its_file(
    backbone: Backbone, trained: tuple[Path, AdapterStore], tmp_path: Path
) -> None:
    root, store = trained
    made = draw(tmp_path / "made", 20, (60, 60, 200), seed=9)
    (made / "99.png").write_bytes((root / "sources" / "blues" / "07.png").read_bytes())
    report = leakage(
        root / "sources",
        generated=made,
        allowed=["reds"],
        features=MeanColour(),
        held_out=root / "held-out",
        store=store,
        backbone=backbone,
        out=tmp_path / "out" / "leakage.json",
        settings=FAST,
    )
    record = json.loads((tmp_path / "out" / "leakage.json").read_text(encoding="utf-8"))
    assert record == json.loads(json.dumps(report.record()))
    near = record["neighbours"]
    assert near["off"]["share"]["value"] == 1.0 and near["off"]["chance"] == 0.5 and near["off"]["real"] == 0
    assert near["closest"][0] == {
        "generated": "99.png",
        "source": "blues",
        "training": "07.png",
        "similarity": pytest.approx(1.0),
        "allowed": False,
    }
    assert (
        near["sources"]["reds"]["held_out"]["pictures"] == 22 and near["sources"]["blues"]["held_out"] is None
    )
    assert near["sources"]["reds"]["switched_on"]["above"]["value"] == 0
    assert (near["pictures"], near["without_record"], near["features"]["name"]) == (21, 0, "mean-colour")
    found = record["membership"]["found"]
    assert [each["source"] for each in found] == ["reds"]
    assert set(found[0]["scores"]) == {"loss", "calibrated", "blind", "text_noise"}
    assert record["membership"]["control"]["scores"]["loss"]["members"] == 20
    assert [len({len(row) for row in table}) for table in report.tables()] == [1] * 5
    assert any("switched off" in row for row in report.tables()[2])
    assert any("Fewer than 100 held-out pictures (reds)" in line for line in report.guidance())


def test_records_beside_pictures_say_what_was_allowed(tmp_path: Path) -> None:
    folder = draw(tmp_path / "made", 3, (10, 10, 10))
    with pytest.raises(BadInput, match="say with --allowed"):
        made_pictures(PictureFolder.open(folder))
    assert made_pictures(PictureFolder.open(folder), ["a"])[2].prompt == "02.png"
    for index in (0, 1):
        write_json(folder / f"{index:02d}.json", {"allowed": ["a", "b"][: index + 1], "prompt": "a cat"})
    made = made_pictures(PictureFolder.open(folder))
    assert [(each.index, each.allowed, each.prompt) for each in made] == [
        (0, ("a",), "a cat"),
        (1, ("a", "b"), "a cat"),
    ]
    with pytest.raises(BadInput, match="leave --allowed out"):
        made_pictures(PictureFolder.open(folder), ["a"])
    write_json(folder / "02.json", {"prompt": "x"})
    with pytest.raises(BadInput, match="names no list of allowed sources"):
        made_pictures(PictureFolder.open(folder))


def test_only_folders_with_pictures_of_their_own_are_sources(tmp_path: Path) -> None:
    draw(tmp_path / "a", 2, (0, 0, 0))
    draw(tmp_path / "held-out" / "a", 2, (0, 0, 0))
    assert list(picture_sources(tmp_path)) == ["a"]
    for names, words in ((["b"], "holds no folder b; it holds a, held-out"), ([], "no folder of pictures")):
        with pytest.raises(BadInput, match=words):
            picture_sources(tmp_path, names)
    with pytest.raises(BadInput, match="no such folder"):
        picture_sources(tmp_path / "none")


def test_sscd_is_read_from_a_torchscript_file(tmp_path: Path) -> None:
    class Small(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.normalize(x.flatten(2).mean(2), dim=1)

    file = tmp_path / "sscd_disc_mixup.torchscript.pt"
    with pytest.warns(FutureWarning):
        torch.jit.script(Small()).save(str(file))
    tower = load_sscd(file)
    assert (tower.name, tower.size, len(tower.weights_sha256)) == ("sscd:sscd_disc_mixup", 320, 64)
    found = tower.features([Image.new("RGB", (20, 30), (255, 0, 0))])
    mean, std = np.array(tower.mean), np.array(tower.std)
    expected = (np.array([1.0, 0, 0]) - mean) / std
    np.testing.assert_allclose(found[0], expected / np.linalg.norm(expected), atol=1e-5)
    (tmp_path / "no.pt").write_bytes(b"no model")
    for name, words in (("no.pt", "is no TorchScript file"), ("none.pt", "no such file")):
        with pytest.raises(BadInput, match=words):
            load_sscd(tmp_path / name)


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "leakage", *map(str, arguments)])
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


def test_the_command_prints_both_parts(
    trained: tuple[Path, AdapterStore], tiny_sd1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, store = trained
    given = ["--sources", root / "sources", "--held-out", root / "held-out", "--store", store.root]
    flags = ["--backbone", tiny_sd1, "--noise-levels", 2, "--control-steps", 0, "--device", "cpu"]
    code, out, err = _run(capsys, *given, *flags, "--out", tmp_path / "leakage.json")
    assert (code, err) == (0, "")
    assert "membership by" in out and "backbone's error (blind)" in out and "nearest" not in out
    assert "There is no positive control" in out
    assert (
        json.loads((tmp_path / "leakage.json").read_text(encoding="utf-8"))["settings"]["noise_levels"] == 2
    )


def test_wrong_input_is_one_line(
    trained: tuple[Path, AdapterStore], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, store = trained
    sources = root / "sources"
    for arguments, words in (
        ([], "nothing to measure"),
        (["--store", store.root], "--store needs --held-out"),
        (["--generated", sources / "reds"], "say with --allowed"),
        (["--generated", sources / "reds", "--allowed", "a,,b"], "--allowed is 'a,,b'"),
        (["--generated", sources / "reds", "--allowed", "reds", "--features", "resnet"], "are not known"),
        (["--generated", tmp_path / "none"], "no such folder"),
        (["--generated", sources / "reds", "--noise-levels", "0"], "noise_levels is 0"),
        (["--generated", sources / "reds", "--max-pictures", "3"], "max_pictures is 3"),
        (["--generated", sources / "reds", "--threshold", "1"], "threshold is 1"),
        (["--generated", sources / "reds", "--seed", "-1"], "seed -1"),
    ):
        code, out, err = _run(capsys, "--sources", sources, *arguments)
        assert (code, out) == (2, ""), words
        assert err.startswith("promptcdm: ") and err.count("\n") == 1 and words in err, err


def test_a_store_without_pictures_or_backbone_is_refused(
    backbone: Backbone, trained: tuple[Path, AdapterStore], tmp_path: Path
) -> None:
    root, store = trained
    with pytest.raises(BadInput, match="give both with the store"):
        leakage(root / "sources", store=store, held_out=root / "held-out")
    with pytest.raises(BadInput, match="no adapter of"):
        leakage(root / "held-out", store=store, held_out=tmp_path, backbone=backbone)
