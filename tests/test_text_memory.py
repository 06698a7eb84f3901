"""A text's keys and values are made once a run: the same bytes, no stale ones, and no work at the later calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_generate import random_adapter
from test_levers import backbone, made, store
from torch import Tensor, nn

from promptcdm.backbone import Backbone
from promptcdm.composed_unet import ComposedUNet
from promptcdm.levers import Levers
from promptcdm.store import AdapterStore
from promptcdm.text_memory import MOST_ROWS, TextMemory, text_layers

__all__ = ["backbone", "store"]  # fixtures
STEPS = 4


@pytest.mark.parametrize(
    "levers",
    [{}, {"top_k": 1}, {"draw": "step"}, {"cache_interval": 2}, {"unconditional_from": "adapter"}],
    ids=str,
)
def test_the_same_bytes_as_without(backbone: Backbone, store: AdapterStore, levers: dict[str, Any]) -> None:
    with_it, without = (
        made(backbone, store, "birds", "cars", "ships", reuse_text=on, **levers) for on in (True, False)
    )
    assert np.array_equal(with_it.images[0], without.images[0])
    assert with_it.records[0]["weights_by_step"] == without.records[0]["weights_by_step"]


def test_the_later_calls_read_no_token(backbone: Backbone, store: AdapterStore) -> None:
    made(backbone, store, "birds")  # from here on the hooks of the memory are there, before this test's
    tokens: list[int] = []
    layer = text_layers(backbone.unet)[0]

    def look(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        tokens.append(args[0].shape[1])

    handle = layer.register_forward_pre_hook(look)
    made(backbone, store, "birds", "cars")
    assert tokens == [24, 0, 0, 0, 0, 0]
    tokens.clear()
    made(backbone, store, "birds", "cars", reuse_text=False)
    assert tokens == [24] * 6
    handle.remove()


@pytest.mark.parametrize("reuse", [True, False])
def test_a_prompt_that_changes_on_the_way_is_read_anew(
    backbone: Backbone, store: AdapterStore, reuse: bool
) -> None:
    """A callback may hand the pipeline other embeddings at any step, and two prompts may share one view."""
    pipe = backbone.pipe

    def drawn(change: bool, levers: Levers) -> np.ndarray:
        composed = ComposedUNet(backbone, [store.load("birds")], router="uniform", levers=levers)

        def other(pipe: Any, step: int, t: Tensor, kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"prompt_embeds": kwargs["prompt_embeds"].flip(1)} if change and step == 1 else {}

        pipe.unet = composed
        try:
            arguments = composed.encode("a bird")
            composed._texts = None  # the pipeline's own embeddings are read, as with adapters of LoRAs alone
            generator = torch.Generator().manual_seed(0)
            asked = {"height": 32, "width": 32, "num_inference_steps": STEPS, "output_type": "np"}
            told = {
                "callback_on_step_end": other,
                "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
            }
            return np.asarray(pipe(**arguments, **asked, **told, generator=generator).images[0])
        finally:
            pipe.unet = backbone.unet
            composed.close()

    exact = drawn(True, Levers(reuse_text=False))
    assert np.array_equal(drawn(True, Levers(reuse_text=reuse)), exact)
    assert not np.array_equal(drawn(False, Levers(reuse_text=reuse)), exact)


def test_rows_are_found_by_name_and_forgotten_with_the_text() -> None:
    memory, layer, text = TextMemory(), nn.Linear(1, 1), torch.ones(1, 2, 3)
    assert memory.of(text).take(["a"]) is None
    memory.keep(["a", "b"], {layer: torch.tensor([[[1.0]], [[2.0]]])})
    memory.keep(["c", "a"], {layer: torch.tensor([[[3.0]], [[9.0]]])})  # a is known
    for rows, expected in ((["c", "a"], [3, 1]), (["a", "b", "c"], [1, 2, 3]), (["b", "b"], [2, 2])):
        taken = memory.of(text).take(rows)
        assert taken is not None
        assert taken[layer].flatten().tolist() == expected
    assert memory.take(["a", "d"]) is None
    text += 1  # in place: the pipeline's own tensor
    assert memory.of(text).take(["a"]) is None


def test_no_more_rows_are_kept_than_there_is_room_for() -> None:
    memory, layer, names = TextMemory(), nn.Linear(1, 1), list(range(MOST_ROWS + 1))
    memory.keep(names, {layer: torch.zeros(len(names), 1, 1)})
    assert memory.take(names[:1]) is None
    memory.keep(names[1:], {layer: torch.zeros(MOST_ROWS, 1, 1)})
    assert memory.take(names[1:]) is not None


def test_a_unet_that_mixes_pictures_into_its_text_is_left_alone(tiny_sd1: Path) -> None:
    unet = Backbone.load(tiny_sd1, device="cpu").unet
    assert len(text_layers(unet)) == 2 * sum(name.endswith("attn2") for name, _ in unet.named_modules()) > 0
    unet.register_to_config(encoder_hid_dim_type="text_image_proj")
    assert text_layers(unet) == []


def test_two_views_of_one_engine_keep_their_own(backbone: Backbone) -> None:
    """The same row names, other adapters: interleaved calls give what each gives alone."""
    adapters = [random_adapter(backbone, name, seed) for seed, name in enumerate(("one", "two"), 7)]
    x_t = torch.randn(1, backbone.unet.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(1))
    text = torch.randn(
        1, 24, backbone.unet.config.cross_attention_dim, generator=torch.Generator().manual_seed(2)
    )

    def views() -> list[ComposedUNet]:
        return [ComposedUNet(backbone, [a], router="uniform", guidance_scale=1.0) for a in adapters]

    def call(view: ComposedUNet, t: int) -> Tensor:
        view._texts = None
        return view(x_t, t, text, return_dict=False)[0]

    alone = [[call(view, t) for t in (900, 500)] for view in views()]
    first, second = views()
    mixed = [[call(first, 900)], [call(second, 900)]]
    mixed[0].append(call(first, 500))
    mixed[1].append(call(second, 500))
    assert all(torch.equal(torch.cat(a), torch.cat(m)) for a, m in zip(alone, mixed, strict=True))
    assert not torch.equal(mixed[0][1], mixed[1][1])
