"""Each option of training: what it computes, that it is off by default, and that an interruption changes no byte."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from promptcdm.backbone import Backbone
from promptcdm.batch import PLAIN, draw_batch, weighted_errors
from promptcdm.buckets import Size
from promptcdm.encoded_source import _parts, encode_source, held_out_items, picture_sizes
from promptcdm.errors import BadInput, RunFailed
from promptcdm.held_out import TIMESTEPS, best_so_far, held_out_batches, held_out_loss
from promptcdm.learned import checkpointing, own_words, trainable
from promptcdm.lora import ATTENTION
from promptcdm.settings import TrainSettings, same_settings
from promptcdm.source import Source
from promptcdm.statistics import latent_covariance, on_grid
from promptcdm.train import add_gradients, train_adapter

FAST = TrainSettings(steps=8, batch_size=4, rank=2, checkpoint_every=2, mixed_precision="no")
Draw = Callable[..., Path]
OPTIONS: dict[str, dict[str, Any]] = {
    "buckets": {"buckets": True},
    "buckets and flip": {"buckets": True, "flip": True},
    "linear": {"lr_scheduler": "linear", "lr_warmup": 0.5},
    "constant": {"lr_scheduler": "constant", "lr_warmup": 0.0},
    "accumulation": {"gradient_accumulation": 2},
    "checkpointing": {"gradient_checkpointing": "on"},
    "checkpointing auto": {"gradient_checkpointing": "auto"},
    "alpha": {"alpha": 1.0},
    "convolutions": {"targets": "conv"},
    "text encoder": {"train_text_encoder": True, "unconditional": "adapter", "caption_dropout": 0.5},
    "average": {"ema_decay": 0.9},
    "noise offset": {"noise_offset": 0.1},
    "held out": {"held_out": 0.4, "held_out_every": 2},
    "early stop": {"held_out": 0.4, "held_out_every": 1, "patience": 2, "lr_scheduler": "constant"},
    "all at once": {
        "kind": "lora+prompt",
        "alpha": 3.0,
        "targets": "conv",
        "train_text_encoder": True,
        "buckets": True,
        "flip": True,
        "gradient_accumulation": 2,
        "gradient_checkpointing": "on",
        "ema_decay": 0.9,
        "noise_offset": 0.1,
        "held_out": 0.4,
        "held_out_every": 3,
        "patience": 2,
    },
}
# These do not change what is computed from one size of picture.
SAME_RESULT = {"buckets", "checkpointing", "checkpointing auto", "held out"}
each_option = pytest.mark.parametrize("option", list(OPTIONS))


@pytest.fixture
def shapes(tmp_path: Path) -> Source:
    """Nine pictures of three aspects; in steps of 8 px around 32x32 they are 24x40, 32x32 and 40x24."""
    folder = tmp_path / "shapes"
    folder.mkdir()
    rows = []
    for n, size in enumerate([(30, 50)] * 2 + [(40, 40)] * 4 + [(100, 60)] * 3):
        picture = Image.linear_gradient("L").resize(size).convert("RGB")
        picture.putpixel((n, n), (255, 20 * n, 0))
        picture.save(folder / f"{n}.png")
        rows.append(json.dumps({"file_name": f"{n}.png", "text": f"picture {n}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return Source.open(folder, license="CC0-1.0")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Stopped(Exception):
    """What the tests interrupt a training with."""


@each_option
@pytest.mark.parametrize("stop", [3, 4])
def test_an_interruption_changes_no_byte(
    shapes: Source, backbone: Backbone, tmp_path: Path, option: str, stop: int
) -> None:
    settings = replace(FAST, **OPTIONS[option])
    whole = train_adapter(shapes, backbone, settings)

    def on_step(step: int, loss: float) -> None:
        if step == stop:
            raise Stopped

    folder = tmp_path / "shapes.partial"
    if len(whole.train_log) >= stop:
        with pytest.raises(Stopped):
            train_adapter(shapes, backbone, settings, checkpoint=folder, on_step=on_step)
    assert not backbone.unet.is_gradient_checkpointing
    resumed = train_adapter(shapes, backbone, settings, checkpoint=folder)
    assert resumed.sha256 == whole.sha256
    assert resumed.train_log == whole.train_log


@each_option
def test_an_option_changes_the_adapter_where_it_should(
    birds: Source, backbone: Backbone, option: str
) -> None:
    """On square pictures; held-out pictures are others than those trained on only where some are taken."""
    settings = replace(FAST, **OPTIONS[option])
    same = train_adapter(birds, backbone, settings).sha256 == train_adapter(birds, backbone, FAST).sha256
    assert same == (option in SAME_RESULT - {"held out"})


def test_the_draws_of_the_default_are_in_the_order_that_adapters_were_trained_with(
    birds: Source, backbone: Backbone
) -> None:
    data = encode_source(birds, backbone, FAST, "")
    batch, other = draw_batch(data, backbone, FAST, 5, generator(3)), generator(3)
    rows = torch.randint(6, (5,), generator=other)
    views = torch.randint(1, (5,), generator=other)
    t = torch.randint(1000, (5,), generator=other)
    (bucket,) = data.buckets
    mean, std = bucket.mean[views, rows], bucket.std[views, rows]
    scale = backbone.pipe.vae.config.scaling_factor
    assert torch.equal(batch.items, rows) and torch.equal(batch.t, t)
    assert torch.equal(batch.x_0, (mean + std * torch.randn(mean.shape, generator=other)) * scale)
    assert torch.equal(batch.noise, torch.randn(mean.shape, generator=other))
    assert not batch.drop.any()


# Buckets


def test_pictures_keep_their_aspect_and_a_batch_has_one_size(shapes: Source, backbone: Backbone) -> None:
    settings = replace(FAST, buckets=True)
    sizes = picture_sizes(shapes, backbone, settings)
    assert sizes == {
        Size(24, 40): [0, 1],
        Size(32, 32): [2, 3, 4, 5],
        Size(40, 24): [6, 7, 8],
    }
    data = encode_source(shapes, backbone, settings, "")
    assert [b.mean.shape for b in data.buckets] == [(1, 2, 4, 10, 6), (1, 4, 4, 8, 8), (1, 3, 4, 6, 10)]
    counts = torch.zeros(9)
    for seed in range(600):
        items = draw_batch(data, backbone, settings, 4, generator(seed)).items
        assert len({size for size, members in sizes.items() for i in items if int(i) in members}) == 1
        counts += torch.bincount(items, minlength=9)
    share = counts / counts.sum()
    assert ((share - 1 / 9).abs() < 0.03).all(), "each picture is drawn as often as any other"


def test_sdxl_is_told_the_size_of_the_bucket(shapes: Source, tiny_pipeline: Callable[[str], Path]) -> None:
    backbone = Backbone.load(tiny_pipeline("sdxl"), device="cpu")
    data = encode_source(shapes, backbone, replace(FAST, buckets=True), "")
    told = {tuple(draw_batch(data, backbone, FAST, 1, generator(s)).time_ids.tolist()) for s in range(40)}
    assert told == {(40, 24, 0, 0, 40, 24), (32, 32, 0, 0, 32, 32), (24, 40, 0, 0, 24, 40)}
    adapter = train_adapter(shapes, backbone, replace(FAST, buckets=True))
    assert adapter.statistics is not None and adapter.statistics.latent_mean.shape == (4, 8, 8)


def test_a_picture_is_mirrored_after_it_is_cropped_and_before_it_is_encoded(
    shapes: Source, backbone: Backbone
) -> None:
    data = encode_source(shapes, backbone, replace(FAST, buckets=True, flip=True), "")
    wide = data.buckets[2]
    picture = shapes.picture(6).resize((40, 24), Image.Resampling.LANCZOS)
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for view, expected in enumerate((picture, mirrored)):
        mean, _ = backbone.encode_images([expected])
        assert torch.allclose(wide.mean[view, 0], mean[0], atol=1e-5)
    assert not torch.allclose(wide.mean[1, 0], wide.mean[0, 0].flip(-1), atol=1e-3), "not the latent turned"


def test_statistics_of_several_sizes_are_those_of_their_pooled_latents() -> None:
    g = generator()
    sizes = [
        (torch.randn(9, 4, h, w, generator=g), torch.rand(9, 4, h, w, generator=g))
        for h, w in ((16, 32), (32, 16))
    ]
    whole = latent_covariance(*on_grid(sizes), rank=2)
    mean = torch.cat([torch.nn.functional.adaptive_avg_pool2d(m, 8) for m, _ in sizes])
    assert torch.allclose(whole[0], mean.mean(0), atol=1e-6)
    same = [latent_covariance(m, s, rank=1) for m, s in (sizes[0], on_grid([sizes[0], sizes[0]]))]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(same[0][:2], same[1][:2], strict=True))
    assert on_grid(sizes[:1]) is sizes[0], "one size keeps its bits"


@pytest.mark.parametrize("count", [1, 2, 3, 5, 31, 32, 33, 34, 65])
@pytest.mark.parametrize("at_once", [0, 1, 2, 3, 8, 32, 500])
def test_pictures_are_encoded_a_few_at_a_time_and_alone_only_where_a_block_of_32_has_one(
    count: int, at_once: int
) -> None:
    parts = [list(range(count))[part] for part in _parts(count, at_once)]
    assert [i for part in parts for i in part] == list(range(count))
    assert all(len(part) <= max(2, at_once) + 1 for part in parts)
    alone = [part[0] for part in parts if len(part) == 1]
    assert alone == ([count - 1] if count % 32 == 1 else [])


def test_large_pictures_have_the_bits_of_a_block_of_32_on_a_cpu(
    shapes: Source, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encode_source(shapes, backbone, FAST, "").buckets[0]
    monkeypatch.setattr("promptcdm.encoded_source._PIXELS", 2 * 32 * 32)
    encoded, encode = [], Backbone.encode_images

    def noted(self: Backbone, images: Sequence[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
        encoded.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(Backbone, "encode_images", noted)
    parts = encode_source(shapes, backbone, FAST, "").buckets[0]
    assert encoded == [2, 2, 2, 3]
    assert torch.equal(whole.mean, parts.mean) and torch.equal(whole.std, parts.std)


# Accumulation, checkpointing, noise offset, average


def test_accumulation_has_the_gradient_of_the_whole_batch(birds: Source, backbone: Backbone) -> None:
    data = encode_source(birds, backbone, FAST, "")
    batch = draw_batch(data, backbone, FAST, 8, generator())
    gradients = []
    for size in (8, 2):
        settings = replace(FAST, kind="lora+prompt", batch_size=size, gradient_accumulation=8 // size)
        with trainable(backbone, settings, "digest") as parameters:
            loss = add_gradients(parameters, batch, data, backbone, settings, 0)
            gradients.append((loss, {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-5)
    assert gradients[0][1].keys() == gradients[1][1].keys()
    for name, whole in gradients[0][1].items():
        assert torch.allclose(whole, gradients[1][1][name], rtol=1e-3, atol=1e-7), name


def test_checkpointing_runs_the_blocks_again_in_the_backward(birds: Source, backbone: Backbone) -> None:
    data = encode_source(birds, backbone, FAST, "")
    batch = draw_batch(data, backbone, FAST, 4, generator())
    calls = []
    hook = backbone.unet.mid_block.resnets[1].register_forward_pre_hook(lambda *_: calls.append(1))
    for again in (False, True):
        with trainable(backbone, FAST, "digest") as parameters, checkpointing(backbone, again):
            add_gradients(parameters, batch, data, backbone, FAST, 0)
    hook.remove()
    assert len(calls) == 3
    assert not backbone.unet.is_gradient_checkpointing


def test_a_noise_offset_is_one_value_a_channel_and_belongs_to_the_noise(
    birds: Source, backbone: Backbone
) -> None:
    data = encode_source(birds, backbone, FAST, "")
    plain = draw_batch(data, backbone, FAST, 4, generator())
    offset = draw_batch(data, backbone, replace(FAST, noise_offset=0.1), 4, generator())
    assert torch.equal(plain.x_0, offset.x_0) and torch.equal(plain.t, offset.t)
    added = (offset.noise - plain.noise) / 0.1
    assert torch.allclose(added, added.mean((2, 3), keepdim=True).expand_as(added), atol=1e-4)
    assert added.mean((2, 3)).std() > 0.3, "a normal number, another for each channel"


def test_the_average_is_what_is_written(birds: Source, backbone: Backbone) -> None:
    """After one step: d = min(decay, 2/11), so the average is 9/11 of the way from the start to the step's end."""
    one = replace(FAST, steps=1)
    plain, average = (train_adapter(birds, backbone, replace(one, ema_decay=d)).lora for d in (0.0, 0.99))
    for name, tensor in plain.items():
        if name.endswith("lora_B.weight"):
            assert torch.allclose(average[name], 9 / 11 * tensor, atol=1e-8), "B starts at 0"


# Held out


def test_held_out_pictures_are_not_trained_on(shapes: Source, backbone: Backbone) -> None:
    settings = replace(FAST, held_out=0.4)
    out = held_out_items(shapes, settings)
    assert len(out) == 3
    data = encode_source(shapes, backbone, settings, "")
    drawn = {int(i) for s in range(60) for i in draw_batch(data, backbone, settings, 4, generator(s)).items}
    assert drawn == set(range(9)) - out
    assert {int(i) for b in held_out_batches(data, backbone, settings, "d") for i in b.items} == out


def test_which_pictures_are_held_out_is_their_own_and_copies_go_together(
    tmp_path: Path, toy_source: Draw
) -> None:
    folder = toy_source(tmp_path, "birds", "red")
    for n in range(6):
        (folder / f"copy-{n}.png").write_bytes((folder / "small-circle.png").read_bytes())
        (folder / f"copy-{n}.txt").write_text("a copy")
    (folder / "metadata.jsonl").unlink()
    for path in folder.glob("*.png"):
        path.with_suffix(".txt").write_text("a picture")
    source, settings = Source.open(folder), replace(FAST, held_out=0.5)
    sizes = set()
    for seed in range(20):
        out = held_out_items(source, replace(settings, seed=seed))
        looks = {source.items[i].pixels_sha256 for i in out}
        assert len(looks) == 3
        assert not looks & {item.pixels_sha256 for i, item in enumerate(source.items) if i not in out}
        sizes.add(len(out))
    assert sizes == {3, 9}, "with the seven copies or without"
    assert held_out_items(source, replace(settings, held_out=0.1)) == frozenset()


def test_the_held_out_loss_is_the_same_each_time_and_of_every_picture_at_every_timestep(
    shapes: Source, backbone: Backbone
) -> None:
    settings = replace(FAST, held_out=0.4, buckets=True)
    data = encode_source(shapes, backbone, settings, "")
    batches = held_out_batches(data, backbone, settings, "digest")
    rows = [(int(i), int(t)) for batch in batches for i, t in zip(batch.items, batch.t, strict=True)]
    assert len(set(rows)) == len(rows) == 3 * TIMESTEPS
    assert {t for _, t in rows} == {125, 375, 625, 875}
    torch.manual_seed(1)
    first = held_out_loss(PLAIN, batches, data, backbone, settings)
    torch.manual_seed(2)
    assert (
        held_out_loss(PLAIN, held_out_batches(data, backbone, settings, "digest"), data, backbone, settings)
        == first
    )
    single = replace(settings, batch_size=1)
    errors = [
        float(weighted_errors(PLAIN, batch, data, backbone, single))
        for batch in held_out_batches(data, backbone, single, "digest")
    ]
    assert sum(errors) / len(errors) == pytest.approx(first, abs=2e-6)


def test_the_best_measurement_of_a_log_and_how_many_came_after_it() -> None:
    def log(*losses: float) -> list[dict[str, float]]:
        return [
            {"step": 2 * n + k, "loss": 0.0, **({"held_out": x} if k == 2 else {})}
            for n, x in enumerate(losses)
            for k in (1, 2)
        ]

    assert best_so_far([]) == (0, 0)
    assert best_so_far(log(0.5)) == (2, 0)
    assert best_so_far(log(0.5, 0.4, 0.6)) == (4, 1)
    assert best_so_far(log(0.5, 0.4, 0.4)) == (4, 1), "as low is not lower"


def test_an_early_stop_keeps_the_weights_of_the_lowest_held_out_loss(
    birds: Source, backbone: Backbone
) -> None:
    """A rate this large spoils the adapter, so that the loss soon rises."""
    settings = replace(
        FAST,
        steps=40,
        learning_rate=0.5,
        lr_scheduler="constant",
        lr_warmup=0.0,
        held_out=0.4,
        held_out_every=1,
        patience=3,
    )
    stopped = train_adapter(birds, backbone, settings)
    log = [dict(row) for row in stopped.train_log]
    best, stale = best_so_far(log)
    assert stale == 3 and len(log) == best + 3 < 40
    data = encode_source(birds, backbone, settings, "")
    digest = birds.manifest().merkle_root
    batches = held_out_batches(data, backbone, settings, digest)
    with trainable(backbone, settings, digest) as parameters:
        for name, parameter in parameters.items():
            module, _, part = name.removeprefix("lora.").rpartition(".")
            parameter.data.copy_(stopped.lora[f"unet.{module}.{part}.weight"])
        again = held_out_loss(own_words(parameters, backbone, settings), batches, data, backbone, settings)
    assert again == pytest.approx(log[best - 1]["held_out"], abs=2e-6)
    assert again == pytest.approx(min(row["held_out"] for row in log), abs=2e-6)


def test_loraplus_gives_b_a_rate_of_its_own(birds: Source, backbone: Backbone) -> None:
    """AdamW's first step is the rate in the gradient's direction; A has none yet, for B is zero."""
    one = replace(FAST, steps=1, lr_scheduler="constant", lr_warmup=0.0)
    plain, plus = (
        train_adapter(birds, backbone, replace(one, loraplus_lr_ratio=r)).lora for r in (1.0, 10.0)
    )
    for name, tensor in plain.items():
        factor = 10 if name.endswith("lora_B.weight") else 1
        assert tensor.any()
        torch.testing.assert_close(plus[name], factor * tensor, rtol=1e-4, atol=1e-7)


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradient_accumulation": 0}, "gradient_accumulation is 0; it takes 1 or more"),
        ({"alpha": -1.0}, "alpha is -1.0; it takes a number above 0, or 0 for the rank"),
        ({"alpha": float("nan")}, "alpha is nan"),
        (
            {"gradient_checkpointing": "yes"},
            "gradient_checkpointing 'yes' is unknown; accepted: auto, on, off",
        ),
        ({"kind": "prompt", "train_text_encoder": True}, "train_text_encoder is a LoRA, and kind is prompt"),
        ({"held_out_every": 0}, "held_out_every is 0"),
        ({"lr_scheduler": "step"}, "lr_scheduler 'step' is unknown; accepted: cosine, linear, constant"),
        ({"mixed_precision": "fp16"}, "mixed_precision 'fp16' is unknown; accepted: auto, bf16, no"),
        ({"loraplus_lr_ratio": 0.0}, "loraplus_lr_ratio is 0.0; it takes a number above 0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"held_out": 1.0}, "held_out is 1.0"),
        ({"lr_warmup": -0.1}, "lr_warmup is -0.1; it takes 0 to 1"),
        ({"noise_offset": 2.0}, "noise_offset is 2.0"),
        ({"patience": 3}, "patience is 3 with held_out 0.0"),
        ({"buckets": True, "resolution": 36}, "resolution is 36; with buckets it takes a multiple of 8"),
    ],
)
def test_wrong_settings_are_refused(
    birds: Source, backbone: Backbone, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        train_adapter(birds, backbone, replace(FAST, **changes))


def test_a_record_without_later_settings_is_of_their_defaults() -> None:
    assert same_settings({"steps": 3, "seed": 1}, TrainSettings(steps=3, seed=1))
    assert not same_settings({"steps": 3}, TrainSettings(steps=3, ema_decay=0.9))
    assert not same_settings({"steps": 3, "unknown": 1}, TrainSettings(steps=3))
    assert same_settings({"steps": 3, "gradient_checkpointing": False}, TrainSettings(steps=3))


def test_too_little_memory_is_told_in_one_line_and_leaves_the_backbone_clean(
    birds: Source, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.cuda.OutOfMemoryError("out of memory")

    hook = backbone.unet.register_forward_pre_hook(full)
    with pytest.raises(RunFailed, match=r"memory of cpu is too small.*smaller batch_size"):
        train_adapter(birds, backbone, replace(FAST, gradient_checkpointing="on"))
    hook.remove()
    assert not backbone.unet.is_gradient_checkpointing
    assert not any(".lora_" in name for name, _ in backbone.unet.named_parameters())
    assert any(name.endswith(ATTENTION) for name, _ in backbone.unet.named_modules())


@pytest.mark.parametrize("again", [False, True])
def test_a_unet_of_bf16_trains_fp32_adapters_in_bf16(birds: Source, tiny_sd1: Path, again: bool) -> None:
    exact = train_adapter(birds, Backbone.load(tiny_sd1, device="cpu"), FAST)
    backbone = Backbone.load(tiny_sd1, device="cpu", dtype="bfloat16")
    half = replace(FAST, mixed_precision="bf16", gradient_checkpointing="on" if again else "off")
    digest = birds.manifest().merkle_root
    with trainable(backbone, half, digest) as parameters, checkpointing(backbone, again):
        data = encode_source(birds, backbone, half, "")
        batch = draw_batch(data, backbone, half, 4, torch.Generator().manual_seed(0))
        kept: list[torch.dtype] = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept.append(tensor.dtype)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            weighted_errors(PLAIN, batch, data, backbone, half).mean().backward()  # type: ignore[no-untyped-call]
        large = sum(dtype == torch.bfloat16 for dtype in kept)
        assert large > (0 if again else len(kept) // 2)
        assert all(
            p.dtype == p.grad.dtype == torch.float32 for p in parameters.values() if p.grad is not None
        )
        assert any(p.grad is not None and p.grad.any() for p in parameters.values())
    assert not any("forward" in vars(module) for module in backbone.unet.modules())
    adapter = train_adapter(birds, backbone, half)
    for row, other in zip(adapter.train_log, exact.train_log, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=0.03)
