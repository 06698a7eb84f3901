"""Feature caching for the UNet: its deep part, kept from an earlier step, and the shallow layers run alone.

Deep features change little from one step to the next (Ma et al., "DeepCache", arXiv 2312.00858). The last layer of
the last up block reads two things: what comes up from below, and the first convolution of the input. A shallow pass
runs that convolution, that layer and the output on features from below that are a few steps old.

    deep   (R, C', h, w) what the last layer read from below, row by row
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


class DeepFeatures:
    """Keeps, in full forwards while it is `on`, what the last layer reads from below."""

    def __init__(self, unet: Any) -> None:
        self.skip = unet.conv_in.out_channels  # the skip from conv_in is joined behind it
        self.on, self.kept = False, torch.empty(0)
        self.handle = unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(self._keep)

    def _keep(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        if self.on:
            self.kept = args[0][:, : -self.skip]

    @contextmanager
    def keeping(self, on: bool) -> Iterator[None]:
        """Keep, or not, in the forwards inside."""
        self.on = on
        try:
            yield
        finally:
            self.on = False

    def take(self) -> Tensor:
        """What was kept, (R, C', h, w); it is not held any longer."""
        kept, self.kept = self.kept, torch.empty(0)
        return kept


def shallow_forward(
    unet: Any,
    x_t: Tensor,
    deep: Tensor,
    *,
    timestep: Tensor,
    encoder_hidden_states: Tensor,
    added_cond_kwargs: dict[str, Tensor] | None = None,
    timestep_cond: Tensor | None = None,
    cross_attention_kwargs: dict[str, Any] | None = None,
    down_block_additional_residuals: Sequence[Tensor] | None = None,
    mid_block_additional_residual: Tensor | None = None,
) -> Tensor:
    """The UNet's prediction (R, C, h, w) from `deep`, with the UNet's own arguments otherwise."""
    emb = unet.time_embedding(unet.get_time_embed(sample=x_t, timestep=timestep), timestep_cond)
    added = unet.get_aug_embed(
        emb=emb, encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added_cond_kwargs
    )
    emb = emb if added is None else emb + added
    text = unet.process_encoder_hidden_states(
        encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added_cond_kwargs
    )
    skip = unet.conv_in(x_t)
    if down_block_additional_residuals is not None:  # ControlNet's; those of deeper layers are in `deep`
        skip = skip + down_block_additional_residuals[0]
    block = unet.up_blocks[-1]
    h = block.resnets[-1](torch.cat([deep, skip], dim=1), emb)
    if getattr(block, "has_cross_attention", False):
        h = block.attentions[-1](
            h,
            encoder_hidden_states=text,
            cross_attention_kwargs=cross_attention_kwargs,
            return_dict=False,
        )[0]
    if unet.conv_norm_out is not None:
        h = unet.conv_act(unet.conv_norm_out(h))
    prediction: Tensor = unet.conv_out(h)
    return prediction


def shallow_share(unet: Any, arguments: Mapping[str, Any]) -> float:
    """FLOPs of a shallow pass over those of a full one, for a row of these arguments (`x_t`, `deep`, the UNet's)."""
    rest = {name: value for name, value in arguments.items() if name not in ("x_t", "deep")}
    with torch.no_grad(), FlopCounterMode(display=False) as shallow:
        shallow_forward(unet, arguments["x_t"], arguments["deep"], **rest)
    with torch.no_grad(), FlopCounterMode(display=False) as full:
        unet(arguments["x_t"], return_dict=False, **rest)
    return float(shallow.get_total_flops() / full.get_total_flops())
