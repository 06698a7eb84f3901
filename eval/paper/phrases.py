"""Regional prompting: each phrase of a joined prompt is read in its own region alone.

    eps(x_t) = sum_r share_r eps_r(x_t, phrase_r)          share_r   how much of each place is region r's, (H, W)
    above a share of noise, the backbone reads the whole prompt and lays the scene out

For the monolith, eps_r is the monolith's; for sources, that of the source whose captions are nearest to the phrase. A
heuristic, like promptcdm's router `regional`, in which every source reads the whole prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from promptcdm.compose import compose_noise
from promptcdm.composed_unet import ComposedUNet
from promptcdm.regional import regional_router, regions_of

View = Callable[[Sequence[str]], ComposedUNet]  # the composition that reads these texts, one a picture


class PhraseUNet(nn.Module):
    """Stands in the pipeline's place for the UNet, for B prompts of at most P phrases, with as many views.

    `layout` is the bare backbone, which draws alone until `layout_until` of the steps' noise is gone; 0 never.
    """

    def __init__(self, view: View, layout: ComposedUNet, layout_until: float = 0.0) -> None:
        super().__init__()
        self.make, self.layout, self.layout_until = view, layout, layout_until
        self.unet = layout.unet  # as a submodule, for the pipeline
        self.views: list[ComposedUNet] = []

    config = property(lambda self: self.layout.config)
    dtype = property(lambda self: self.layout.dtype)
    device = property(lambda self: self.layout.device)
    weights = property(lambda self: [])  # nothing is routed by the picture

    @property
    def row_forwards(self) -> Tensor:
        """(B,) of all views."""
        return torch.stack([v.row_forwards for v in [*self.views, self.layout] if len(v.row_forwards)]).sum(0)

    def encode(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Arguments for the pipeline's call. Starts a new run."""
        regions = [regions_of(prompt) for prompt in prompts]
        count = max(map(len, regions))
        eye = [torch.eye(count, device=self.device)[: len(own)] for own in regions]
        self.share = regional_router(eye, [[region.box for region in own] for own in regions])
        self.close()
        texts = [[own[r % len(own)].phrase for own in regions] for r in range(count)]
        self.views = [self.make(own) for own in texts]
        self.read = [view.encode(own) for view, own in zip(self.views, texts, strict=True)]
        return self.layout.encode(prompts)

    @torch.no_grad()
    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """Called as the stock UNet is, with n or 2n rows."""
        t = float(torch.as_tensor(timestep).reshape(-1)[-1])
        if 1 - t / len(self.layout.backbone.alphas_cumprod) < self.layout_until:
            eps = self.layout(sample, timestep, encoder_hidden_states, added_cond_kwargs, False, **kwargs)[0]
        else:
            parts = [
                view(sample, timestep, _embeds(texts, len(sample)), added_cond_kwargs, False, **kwargs)[0]
                for view, texts in zip(self.views, self.read, strict=True)
            ]
            n = self.views[0].row_forwards.shape[0]
            share, _ = self.share.route(None, sample[-n:], sample.new_ones(n), None)
            eps = compose_noise(torch.stack(parts), torch.cat([share] * (len(sample) // n)))
        return UNet2DConditionOutput(sample=eps) if return_dict else (eps,)

    def close(self) -> None:
        """Take the views' adapters out of the engine's slots."""
        for view in self.views:
            view.close()
        self.views = []


def _embeds(texts: dict[str, Any], rows: int) -> Tensor:
    embeds = [texts[name] for name in ("negative_prompt_embeds", "prompt_embeds") if name in texts]
    joined = torch.cat(embeds)
    return joined.repeat_interleave(rows // len(joined), dim=0)
