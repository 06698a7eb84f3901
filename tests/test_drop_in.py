"""`pipe.unet = composed` in stock diffusers pipelines: what they draw is what they draw with the LoRA loaded.

The reference is always diffusers itself, over a second copy of the same tiny random weights: with the LoRA in its UNet
by `load_lora_weights`, or bare. Latents are compared, before a VAE could hide a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import pytest
import torch
from made_adapter import made_adapter, random_lora, random_prompt, random_statistics
from PIL import Image
from torch import Tensor

from promptcdm.adapter import LORA, Adapter, Statistics, save_adapter
from promptcdm.adapter_record import BackboneRecord
from promptcdm.backbone import Backbone
from promptcdm.composed_unet import ComposedUNet
from promptcdm.errors import BadInput
from promptcdm.lora import target_modules
from promptcdm.tensorfile import write_tensors

PROMPT, NEGATIVE = "a red square", "grey"
GUIDANCE = 3.0
TOLERANCE = 1e-4
SEEN = 1e-2  # a difference in latents that nobody could take for rounding
PICTURE = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
MASK = Image.new("L", (32, 32), 0)
MASK.paste(255, (8, 8, 24, 32))

# name: architecture, class, arguments besides the prompt
PIPELINES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "text": ("sd1", "StableDiffusionPipeline", {}),
    "text-v-prediction": ("sd2", "StableDiffusionPipeline", {}),
    "img2img": ("sd1", "StableDiffusionImg2ImgPipeline", {"image": PICTURE, "strength": 0.7}),
    "inpaint": (
        "sd1",
        "StableDiffusionInpaintPipeline",
        {"image": PICTURE, "mask_image": MASK, "strength": 1.0},
    ),
    "controlnet": ("sd1", "StableDiffusionControlNetPipeline", {"image": PICTURE}),
    "xl": ("sdxl", "StableDiffusionXLPipeline", {}),
    "xl-img2img": ("sdxl", "StableDiffusionXLImg2ImgPipeline", {"image": PICTURE, "strength": 0.7}),
}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++2m-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "lcm": ("LCMScheduler", {}),
}
each_pipeline = pytest.mark.parametrize("case", PIPELINES)
each_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS)


@dataclass(frozen=True)
class Trio:
    """One backbone three times: ours, and two stock pipelines, bare and with the LoRA of `birds` loaded."""

    backbone: Backbone
    bare: Any
    adapted: Any
    birds: Adapter  # its unconditional branch is its own, as in stock diffusers
    cars: Adapter


@pytest.fixture(scope="session")
def tiny_trio(
    tiny_pipeline: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Trio]:
    """Return a function (kind) -> Trio, each made once and left as it was by every test."""
    made: dict[str, Trio] = {}

    def trio(kind: str) -> Trio:
        if kind not in made:
            made[kind] = new_trio(tiny_pipeline(kind), tmp_path_factory.mktemp(f"trio-{kind}"))
        return made[kind]

    return trio


@pytest.fixture
def tiny_fresh(tiny_sd1: Path, tmp_path: Path) -> Trio:
    """A Trio of the test's own, for what cannot be undone."""
    return new_trio(tiny_sd1, tmp_path / "fresh")


@pytest.fixture
def sd1(tiny_trio: Callable[[str], Trio]) -> Trio:
    return tiny_trio("sd1")


def new_trio(folder: Path, store: Path) -> Trio:
    ours, bare, adapted = (Backbone.load(folder, device="cpu", dtype="float32") for _ in range(3))
    birds, cars = drawn(ours, "birds", 0, unconditional="adapter"), drawn(ours, "cars", 1)
    save_adapter(birds, store / "birds")
    adapted.pipe.load_lora_weights(store / "birds", weight_name=LORA)
    return Trio(ours, bare.pipe, adapted.pipe, birds, cars)


def drawn(backbone: Backbone, name: str, seed: int, **changes: Any) -> Adapter:
    """An adapter of random numbers, large enough to show."""
    shapes = {n: backbone.module_shapes[n] for n in target_modules(backbone.unet, "wide")}
    record = BackboneRecord(name=backbone.name, digest=backbone.digest, architecture=backbone.architecture)
    lora = random_lora(shapes, seed=seed)
    return made_adapter(name, **({"lora": lora, "trained": False, "backbone": record} | changes))


def pipeline(case: str, stock: Any, unet: Any, scheduler: str = "ddim") -> Any:
    """The stock class of that name over the parts of `stock`, with a UNet and a scheduler of its own."""
    _, name, _ = PIPELINES[case]
    kind, settings = SCHEDULERS[scheduler]
    parts = stock.components | {"unet": unet}
    parts["scheduler"] = getattr(diffusers, kind).from_config(stock.scheduler.config, **settings)
    if "requires_safety_checker" in stock.config:
        parts["requires_safety_checker"] = False
    if case == "controlnet":
        parts["controlnet"] = controlnet(stock)
    pipe = getattr(diffusers, name)(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def controlnet(stock: Any) -> diffusers.ControlNetModel:
    """A tiny one of random weights: as made by `from_unet` its residuals would all be zero."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net = diffusers.ControlNetModel.from_unet(
            diffusers.UNet2DConditionModel.from_config(stock.unet.config),
            conditioning_embedding_out_channels=(8, 8, 16),
            load_weights_from_unet=False,
        )
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return net.eval()  # type: ignore[no-any-return]


def run(pipe: Any, text: Mapping[str, Any], case: str = "text", **more: Any) -> Tensor:
    """Latents of three steps from one seed."""
    defaults = {"num_inference_steps": 3, "output_type": "latent"} | PIPELINES[case][2]
    generator = torch.Generator().manual_seed(1)
    latents: Tensor = pipe(**text, **(defaults | {"generator": generator} | more)).images
    return latents


@contextmanager
def composed_in(pipe: Any, backbone: Backbone, *adapters: Adapter, **settings: Any) -> Iterator[ComposedUNet]:
    """`pipe.unet = composed`, with the backbone as it was afterwards."""
    settings = {"router": "uniform", "guidance_scale": GUIDANCE} | settings
    pipe.unet = composed = ComposedUNet(backbone, adapters, **settings)
    try:
        yield composed
    finally:
        composed.close()


def ours(
    trio: Trio,
    *adapters: Adapter,
    case: str = "text",
    scheduler: str = "ddim",
    prompt: str | list[str] = PROMPT,
    negative: str = "",
    settings: Mapping[str, Any] | None = None,
    **more: Any,
) -> Tensor:
    """What the pipeline draws with a composed UNet in it."""
    pipe = pipeline(case, trio.bare, trio.backbone.unet, scheduler)
    with composed_in(pipe, trio.backbone, *adapters, **(settings or {})) as composed:
        return run(pipe, composed.encode(prompt, negative), case, **more)


def theirs(stock: Any, *, case: str = "text", scheduler: str = "ddim", **more: Any) -> Tensor:
    """What stock diffusers draws, and nothing of ours in it."""
    text = {"prompt": PROMPT, "guidance_scale": GUIDANCE}
    given = {k: more.pop(k) for k in ("prompt", "negative_prompt", "guidance_scale") if k in more}
    return run(pipeline(case, stock, stock.unet, scheduler), text | given, case, **more)


def assert_same(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=TOLERANCE)


def assert_other(left: Tensor, right: Tensor) -> None:
    assert (left - right).abs().max() > SEEN


@each_pipeline
def test_one_source_is_the_stock_pipeline_with_its_lora(tiny_trio: Callable[[str], Trio], case: str) -> None:
    trio = tiny_trio(PIPELINES[case][0])
    bare, adapted = (theirs(stock, case=case) for stock in (trio.bare, trio.adapted))
    assert_other(adapted, bare)
    assert_same(ours(trio, trio.birds, case=case), adapted)
    assert_same(ours(trio, case=case), bare)


def test_the_control_picture_is_seen(sd1: Trio) -> None:
    """The reference of the ControlNet's case can fail: without its residuals the latents are others."""
    free = theirs(sd1.adapted, case="controlnet", controlnet_conditioning_scale=0.0)
    assert_other(theirs(sd1.adapted, case="controlnet"), free)
    half = theirs(sd1.adapted, case="controlnet", controlnet_conditioning_scale=0.5)
    assert_same(ours(sd1, sd1.birds, case="controlnet", controlnet_conditioning_scale=0.5), half)


@each_pipeline
def test_two_sources_compose_in_every_pipeline(tiny_trio: Callable[[str], Trio], case: str) -> None:
    trio = tiny_trio(PIPELINES[case][0])
    steps: list[int] = []

    def count(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        return kwargs

    pipe = pipeline(case, trio.bare, trio.backbone.unet)
    with composed_in(pipe, trio.backbone, trio.birds, trio.cars) as composed:
        both = run(pipe, composed.encode(PROMPT), case, callback_on_step_end=count)
        weights, rows = list(composed.weights), composed.row_forwards
    assert both.isfinite().all()
    assert len(weights) == len(steps) > 1
    assert all(torch.equal(w, torch.tensor([[0.5, 0.5]])) for w in weights)
    assert rows is not None and len(rows) == 1
    assert 2 * len(steps) <= float(rows[0]) <= 4 * len(steps), "one to two rows a source and step"
    assert_other(both, ours(trio, trio.birds, case=case))
    assert_other(both, theirs(trio.bare, case=case))


@each_scheduler
def test_one_source_is_stock_diffusers_under_every_scheduler(sd1: Trio, scheduler: str) -> None:
    adapted = theirs(sd1.adapted, scheduler=scheduler)
    assert_other(adapted, theirs(sd1.bare, scheduler=scheduler))
    assert_same(ours(sd1, sd1.birds, scheduler=scheduler), adapted)


def test_a_unet_distilled_for_lcm_takes_the_guidance_scale_as_an_input(
    tiny_sd1: Path, tmp_path: Path
) -> None:
    """Such a UNet (`time_cond_proj_dim`) is run without unconditional rows, whatever the scale."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_sd1, local_files_only=True)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        changed = {**pipe.unet.config, "time_cond_proj_dim": 8}
        pipe.unet = diffusers.UNet2DConditionModel.from_config(changed)
    pipe.save_pretrained(tmp_path / "distilled", safe_serialization=True)
    trio = new_trio(tmp_path / "distilled", tmp_path)
    adapted = theirs(trio.adapted, scheduler="lcm")
    assert_other(adapted, theirs(trio.adapted, scheduler="lcm", guidance_scale=9.0))
    assert_same(ours(trio, trio.birds, scheduler="lcm"), adapted)


@each_scheduler
def test_a_router_that_reads_the_noise_level_takes_every_schedulers_timesteps(
    sd1: Trio, scheduler: str
) -> None:
    sources = [replace(a, statistics=statistics(i)) for i, a in enumerate((sd1.birds, sd1.cars))]
    pipe = pipeline("text", sd1.bare, sd1.backbone.unet, scheduler)
    with composed_in(pipe, sd1.backbone, *sources, router="posterior") as composed:
        latents = run(pipe, composed.encode(PROMPT))
        weights = torch.cat(composed.weights)
    assert latents.isfinite().all()
    assert len(weights) >= 3
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))
    fractional = any(float(t) % 1 for t in pipe.scheduler.timesteps)
    assert fractional == (scheduler == "euler-karras"), "the case of timesteps that are not whole is there"


def statistics(seed: int) -> Statistics:
    """Those of a made adapter, with caption prototypes as wide as the tiny text encoder."""
    prototypes = torch.randn(2, 16, generator=torch.Generator().manual_seed(seed))
    return replace(
        random_statistics(seed=seed), caption_prototypes=torch.nn.functional.normalize(prototypes, dim=1)
    )


# What a caller asks of the stock pipeline: arguments of `ours`, and the same ones in diffusers' words.
REQUESTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "negative prompt": ({"negative": NEGATIVE}, {"negative_prompt": NEGATIVE}),
    "two pictures a prompt": ({"num_images_per_prompt": 2}, {"num_images_per_prompt": 2}),
    "two prompts": (
        {"prompt": [PROMPT, "a dog"], "negative": NEGATIVE},
        {"prompt": [PROMPT, "a dog"], "negative_prompt": [NEGATIVE] * 2},
    ),
    "two pictures of two prompts": (
        {"prompt": [PROMPT, "a dog"], "num_images_per_prompt": 2},
        {"prompt": [PROMPT, "a dog"], "num_images_per_prompt": 2},
    ),
    "guidance off": ({"settings": {"guidance_scale": 1.0}}, {"guidance_scale": 1.0}),
    "guidance off, two prompts": (
        {"settings": {"guidance_scale": 1.0}, "prompt": [PROMPT, "a dog"]},
        {"guidance_scale": 1.0, "prompt": [PROMPT, "a dog"]},
    ),
    "another size": ({"height": 48, "width": 40}, {"height": 48, "width": 40}),
    "guidance rescale": ({"guidance_rescale": 0.7}, {"guidance_rescale": 0.7}),
    "decoded pictures": ({"output_type": "pt"}, {"output_type": "pt"}),
}


@pytest.mark.parametrize(
    "request_name",
    REQUESTS,
)
def test_what_a_caller_may_ask_of_the_pipeline_is_stock_diffusers(sd1: Trio, request_name: str) -> None:
    mine, stock = REQUESTS[request_name]
    adapted = theirs(sd1.adapted, **stock)
    assert_same(ours(sd1, sd1.birds, **mine), adapted)
    assert_other(adapted, theirs(sd1.bare, **stock))


def test_the_pipelines_one_lora_scale_is_refused_as_each_source_has_its_own(sd1: Trio) -> None:
    with pytest.raises(BadInput, match="each source has its own: strength"):
        ours(sd1, sd1.birds, cross_attention_kwargs={"scale": 0.5})


@pytest.mark.parametrize("negative", ["", NEGATIVE])
def test_sdxl_takes_a_negative_prompt_and_a_batch(tiny_trio: Callable[[str], Trio], negative: str) -> None:
    trio = tiny_trio("sdxl")
    prompts = [PROMPT, "a dog"]
    mine = ours(trio, trio.birds, case="xl", prompt=prompts, negative=negative, num_images_per_prompt=2)
    stock = {"negative_prompt": [negative] * 2} if negative else {}
    assert_same(mine, theirs(trio.adapted, case="xl", prompt=prompts, num_images_per_prompt=2, **stock))


def test_the_weights_of_a_batch_are_recorded_for_each_picture(sd1: Trio) -> None:
    pipe = pipeline("text", sd1.bare, sd1.backbone.unet)
    with composed_in(pipe, sd1.backbone, sd1.birds, sd1.cars) as composed:
        latents = run(pipe, composed.encode([PROMPT, "a dog"]), num_images_per_prompt=2)
        assert len(latents) == 4
        assert [tuple(w.shape) for w in composed.weights] == [(4, 2)] * 3


def test_a_callback_sees_and_changes_the_latents(sd1: Trio) -> None:
    def halve(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"latents": kwargs["latents"] / 2} if step == 0 else kwargs

    adapted = theirs(sd1.adapted, callback_on_step_end=halve)
    assert_same(ours(sd1, sd1.birds, callback_on_step_end=halve), adapted)
    assert_other(adapted, theirs(sd1.adapted))


def unguided_from_step_1(pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Diffusers' own example of a callback: no guidance, and so no unconditional rows, after the first step."""
    if step == 0:
        pipe._guidance_scale = 0.0
        kwargs["prompt_embeds"] = kwargs["prompt_embeds"].chunk(2)[-1]
    return kwargs


@pytest.mark.parametrize("prompts", [1, 2])
def test_a_callback_that_ends_guidance_works_or_is_refused(sd1: Trio, prompts: int) -> None:
    asked = [PROMPT, "a dog"][:prompts]
    ends = {
        "callback_on_step_end": unguided_from_step_1,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
    }
    try:
        mine = ours(sd1, sd1.birds, prompt=asked, **ends)
    except BadInput:
        return
    assert_same(mine, theirs(sd1.adapted, prompt=asked, **ends))


@pytest.mark.parametrize("source", ["birds", "cars"])
@pytest.mark.parametrize("composed_scale", [1.0, GUIDANCE])
def test_guidance_that_encode_did_not_return_works_or_is_refused(
    sd1: Trio, composed_scale: float, source: str
) -> None:
    """Two prompts: two rows without guidance, four with. Read wrongly, half of them would change places.

    `cars` leaves the unconditional branch to the backbone, so the branches of its rows do not act alike.
    """
    prompts, scale, adapter = [PROMPT, "a dog"], 4.0 if composed_scale == 1.0 else 1.0, getattr(sd1, source)
    wanted = ours(sd1, adapter, prompt=prompts, settings={"guidance_scale": scale})
    pipe = pipeline("text", sd1.bare, sd1.backbone.unet)
    with composed_in(pipe, sd1.backbone, adapter, guidance_scale=composed_scale) as composed:
        text = composed.encode(prompts) | {"guidance_scale": scale}
        if scale > 1:
            text["negative_prompt_embeds"] = sd1.backbone.encode_negative("", 2).embeds
        try:
            mine = run(pipe, text)
        except BadInput:
            return
    assert_same(mine, wanted)


def test_attention_slicing_reaches_the_backbone(sd1: Trio) -> None:
    pipe = pipeline("text", sd1.bare, sd1.backbone.unet)
    with composed_in(pipe, sd1.backbone, sd1.birds, sd1.cars) as composed:
        whole = run(pipe, composed.encode(PROMPT))
        pipe.enable_attention_slicing()
        names = {type(p).__name__ for p in sd1.backbone.unet.attn_processors.values()}
        sliced = run(pipe, composed.encode(PROMPT))
        pipe.disable_attention_slicing()
    assert names == {"SlicedAttnProcessor"}
    assert_same(sliced, whole)
    assert "Sliced" not in str(sd1.backbone.unet.attn_processors), "it can be switched off again"


def test_freeu_works_or_is_refused_by_name(tiny_fresh: Trio) -> None:
    trio, settings = tiny_fresh, {"s1": 0.5, "s2": 0.2, "b1": 1.6, "b2": 1.8}
    pipe = pipeline("text", trio.bare, trio.backbone.unet)
    with composed_in(pipe, trio.backbone, trio.birds) as composed:
        try:
            pipe.enable_freeu(**settings)
            mine = run(pipe, composed.encode(PROMPT))
        except BadInput:
            return
    trio.adapted.enable_freeu(**settings)
    assert_same(mine, theirs(trio.adapted))


def test_a_backbone_in_bfloat16_draws_finite_latents(tiny_sd1: Path) -> None:
    backbone = Backbone.load(tiny_sd1, device="cpu", dtype="bfloat16")
    sources = [drawn(backbone, name, seed) for seed, name in enumerate(("birds", "cars"))]
    pipe = pipeline("text", backbone.pipe, backbone.unet)
    with composed_in(pipe, backbone, *sources) as composed:
        latents = run(pipe, composed.encode(PROMPT))
    assert latents.dtype == torch.bfloat16
    assert latents.isfinite().all()


# Soft prompts, triggers, and the embeddings that a caller passes


@pytest.fixture
def words(sd1: Trio) -> Adapter:
    """A source that learned only a soft prompt."""
    return drawn(sd1.backbone, "words", 2, lora={}, prompt=random_prompt({"text_encoder": 16}))


def test_a_soft_prompt_source_and_a_lora_source_compose(sd1: Trio, words: Adapter) -> None:
    """One DDIM step is affine in eps, so with weights of a half its latents are the mean of the two sources'."""
    one: dict[str, Any] = {"num_inference_steps": 1, "settings": {"guidance_scale": 30.0}}
    lora, soft = (ours(sd1, source, **one) for source in (sd1.cars, words))
    both = ours(sd1, sd1.cars, words, **one)
    assert_same(both, (lora + soft) / 2)
    assert_other(lora, soft)
    assert_other(soft, ours(sd1, **one))


def test_a_trigger_is_the_prompt_that_begins_with_it(sd1: Trio) -> None:
    record = sd1.birds.record.model_copy(update={"trigger": "brd"})
    mine = ours(sd1, replace(sd1.birds, record=record))
    assert_same(mine, theirs(sd1.adapted, prompt=f"brd {PROMPT}"))
    assert_other(mine, theirs(sd1.adapted))


@pytest.mark.parametrize("source", ["soft prompt", "trigger"])
def test_leaving_encode_out_is_refused_where_a_source_has_words_of_its_own(
    sd1: Trio, words: Adapter, source: str
) -> None:
    record = sd1.birds.record.model_copy(update={"trigger": "brd"})
    adapter = words if source == "soft prompt" else replace(sd1.birds, record=record)
    pipe = pipeline("text", sd1.bare, sd1.backbone.unet)
    with composed_in(pipe, sd1.backbone, adapter), pytest.raises(BadInput, match=r"encode\(prompt"):
        run(pipe, {"prompt": PROMPT, "guidance_scale": GUIDANCE})


def test_leaving_encode_out_with_a_bare_lora_works_or_is_refused(sd1: Trio) -> None:
    pipe = pipeline("text", sd1.bare, sd1.backbone.unet)
    with composed_in(pipe, sd1.backbone, sd1.birds):
        try:
            mine = run(pipe, {"prompt": PROMPT, "guidance_scale": GUIDANCE})
        except BadInput:
            return
    assert_same(mine, theirs(sd1.adapted))


@pytest.mark.parametrize("source", ["soft prompt", "lora"])
def test_the_prompt_of_an_earlier_run_is_never_drawn_again(sd1: Trio, words: Adapter, source: str) -> None:
    adapter = words if source == "soft prompt" else sd1.birds
    pipe = pipeline("text", sd1.bare, sd1.backbone.unet)
    with composed_in(pipe, sd1.backbone, adapter) as composed:
        wanted = run(pipe, composed.encode("a dog"))
        run(pipe, composed.encode(PROMPT))
        try:
            mine = run(pipe, {"prompt": "a dog", "guidance_scale": GUIDANCE})
        except BadInput:
            return
    assert_same(mine, wanted)


def test_the_same_encoding_may_be_drawn_twice(sd1: Trio) -> None:
    pipe = pipeline("text", sd1.bare, sd1.backbone.unet)
    with composed_in(pipe, sd1.backbone, sd1.birds) as composed:
        text = composed.encode(PROMPT)
        assert torch.equal(run(pipe, text), run(pipe, text))


# What is put into the UNet besides: other LoRAs, an IP-Adapter


@pytest.fixture
def lcm_file(sd1: Trio, tmp_path: Path) -> Path:
    """A LoRA as diffusers saves one, like the LCM-LoRA that people put on top."""
    write_tensors(tmp_path / "lcm.safetensors", drawn(sd1.backbone, "lcm", 9).lora, {"format": "pt"})
    return tmp_path / "lcm.safetensors"


def test_a_lora_loaded_through_the_pipeline_is_refused(sd1: Trio, lcm_file: Path) -> None:
    pipe = pipeline("text", sd1.bare, sd1.backbone.unet)
    before = {n: t.clone() for n, t in sd1.backbone.unet.state_dict().items()}
    with composed_in(pipe, sd1.backbone, sd1.birds) as composed:
        drawn_before = run(pipe, composed.encode(PROMPT))
        with pytest.raises(BadInput, match="takes no further LoRA"):
            pipe.load_lora_weights(lcm_file)
        assert torch.equal(run(pipe, composed.encode(PROMPT)), drawn_before)
    after = sd1.backbone.unet.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[n], before[n]) for n in before)


@pytest.mark.parametrize("call", ["fuse_lora", "unfuse_lora", "unload_lora_weights", "disable_lora"])
def test_the_pipelines_other_lora_calls_change_nothing(sd1: Trio, call: str) -> None:
    """None of them may reach into the sources' own LoRAs, let alone merge one into the backbone."""
    pipe = pipeline("text", sd1.bare, sd1.backbone.unet)
    before = {n: t.clone() for n, t in sd1.backbone.unet.state_dict().items()}
    with composed_in(pipe, sd1.backbone, sd1.birds) as composed:
        drawn_before = run(pipe, composed.encode(PROMPT))
        with suppress(BadInput):
            getattr(pipe, call)()
        assert torch.equal(run(pipe, composed.encode(PROMPT)), drawn_before)
    after = sd1.backbone.unet.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[n], before[n]) for n in before)


@pytest.mark.parametrize("fused", [False, True])
def test_a_lora_that_is_in_the_unet_already_works_or_is_refused(
    tiny_fresh: Trio, lcm_file: Path, fused: bool
) -> None:
    """An LCM-LoRA loaded first acts in every prediction, or the composition says that it cannot."""
    trio = tiny_fresh
    for pipe in (trio.backbone.pipe, trio.bare):
        pipe.load_lora_weights(lcm_file, adapter_name="lcm")
        if fused:
            pipe.fuse_lora(components=["unet"])
    with_lcm = theirs(trio.bare)
    try:
        mine = ours(trio)
    except BadInput:
        return
    assert_same(mine, with_lcm)


def ip_adapter(backbone: Backbone) -> dict[str, dict[str, Tensor]]:
    """The tensors of an IP-Adapter for the tiny UNet: an image vector of width 6 becomes 4 tokens of width 16."""
    generator = torch.Generator().manual_seed(4)

    def random(*shape: int) -> Tensor:
        return 0.3 * torch.randn(shape, generator=generator)

    projection = {"proj.weight": random(64, 6), "proj.bias": random(64)}
    projection |= {"norm.weight": random(16) + 1, "norm.bias": random(16)}
    attention = {}
    cross = [n for n in backbone.unet.attn_processors if "attn2" in n]
    for i, name in enumerate(cross):
        to_k = backbone.module_shapes[name.removesuffix(".processor") + ".to_k"]
        for part in ("to_k_ip", "to_v_ip"):
            attention[f"{2 * i + 1}.{part}.weight"] = random(*to_k)
    return {"image_proj": projection, "ip_adapter": attention}


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_ip_adapter_on_top_works_or_is_refused_by_name(tiny_fresh: Trio, when: str) -> None:
    trio = tiny_fresh
    tensors = ip_adapter(trio.backbone)
    picture = torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(6))  # unconditional, conditional
    pipe = pipeline("text", trio.bare, trio.backbone.unet)
    without = theirs(trio.adapted)
    try:
        if when == "before":
            pipe.load_ip_adapter(tensors, subfolder=None, weight_name=None, image_encoder_folder=None)
        with composed_in(pipe, trio.backbone, trio.birds) as composed:
            if when == "after":
                pipe.load_ip_adapter(tensors, subfolder=None, weight_name=None, image_encoder_folder=None)
            mine = run(pipe, composed.encode(PROMPT), ip_adapter_image_embeds=[picture])
    except BadInput as error:
        assert "IP-Adapter" in str(error)
        return
    trio.adapted.load_ip_adapter(tensors, subfolder=None, weight_name=None, image_encoder_folder=None)
    adapted = theirs(trio.adapted, ip_adapter_image_embeds=[picture])
    assert_other(adapted, without)
    assert_same(mine, adapted)


# Compiling, moving and offloading


@pytest.mark.parametrize("what", ["backbone", "composed"])
def test_compiled_is_the_same(tiny_fresh: Trio, what: str) -> None:
    """Dynamo's tracing without code generation; two prompts, so that nothing of the first is kept as a constant."""
    trio = tiny_fresh
    x_t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    with composed_in(trio.bare, trio.backbone, trio.birds, guidance_scale=1.0) as composed:

        def predict(unet: Any, prompt: str) -> Tensor:
            embeds = composed.encode(prompt)["prompt_embeds"]
            eps: Tensor = unet(x_t, torch.tensor(500), embeds, return_dict=False)[0]
            return eps

        plain = [predict(composed, prompt) for prompt in (PROMPT, "a dog")]
        torch._dynamo.reset()
        if what == "backbone":
            trio.backbone.unet.compile(backend="eager")
        unet = torch.compile(composed, backend="eager") if what == "composed" else composed
        compiled = [predict(unet, prompt) for prompt in (PROMPT, "a dog")]
    assert_other(*plain)
    for left, right in zip(compiled, plain, strict=True):
        assert_same(left, right)


def test_a_moved_pipeline_moves_the_backbone(tiny_fresh: Trio) -> None:
    """`pipe.to` and the offload hooks act on `pipe.unet`'s own parameters, so the backbone's must be among them."""
    trio = tiny_fresh
    pipe = pipeline("text", trio.bare, trio.backbone.unet)
    with composed_in(pipe, trio.backbone, trio.cars) as composed:
        pipe.to(torch.bfloat16)
        assert trio.backbone.dtype == torch.bfloat16
        assert {id(p) for p in trio.backbone.unet.parameters()} <= {id(p) for p in composed.parameters()}


@pytest.mark.parametrize("mode", ["model", "sequential"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_cpu_offload_draws_the_same(tiny_fresh: Trio, mode: str, device: str) -> None:
    """On the CPU the hooks move nothing far, but they are in every call."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("offloading away from an accelerator needs one")
    trio = tiny_fresh
    wanted = ours(trio, trio.birds, trio.cars)
    pipe = pipeline("text", trio.bare, trio.backbone.unet)
    with composed_in(pipe, trio.backbone, trio.birds, trio.cars) as composed:
        if (mode, device) == ("sequential", "cpu"):
            # A stock pipeline's text encoder cannot be offloaded so without an accelerator: accelerate's hooks do not
            # take its embedding back. So the hooks are put on the composed UNet alone, as the pipeline would.
            accelerate.cpu_offload(composed, torch.device("cpu"))
        else:
            getattr(pipe, f"enable_{mode}_cpu_offload")(device=device)
        mine = run(pipe, composed.encode(PROMPT))
        pipe.remove_all_hooks()
    torch.testing.assert_close(mine.cpu(), wanted, rtol=0, atol=TOLERANCE if device == "cpu" else 1e-2)


def test_a_backbone_whose_layers_are_offloaded_draws_the_same(tiny_fresh: Trio) -> None:
    """Its weights are on no device between the calls; the sources' LoRAs come after the hooks."""
    trio = tiny_fresh
    wanted = ours(trio, trio.birds)
    accelerate.cpu_offload(trio.backbone.unet, execution_device=torch.device("cpu"))
    assert_same(ours(trio, trio.birds), wanted)
