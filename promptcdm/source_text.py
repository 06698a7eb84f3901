"""What each source reads in one run: the prompts after its trigger and soft prompt, encoded with its text-encoder LoRA.

The pipeline is handed the plain embeddings, and so is the router. A source that has words of its own reads its own ones
instead: they are put into its rows at every UNet call. With its own unconditional branch it reads the negative prompt
through its text-encoder LoRA too, as a stock pipeline does in which that LoRA is loaded; trigger and soft prompt are
no part of a negative prompt.

    L, D, D2    tokens, width, pooled width        rows: unconditional first where guidance is on
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from promptcdm.adapter import Adapter
from promptcdm.backbone import Backbone
from promptcdm.prompt import PromptEmbeds
from promptcdm.row_plan import RowPlan
from promptcdm.text_lora import TextLora


@dataclass(frozen=True)
class Reader:
    """A source, and how it reads."""

    adapter: Adapter
    strength: float  # of its LoRA
    own_unconditional: bool

    @property
    def has_own_text(self) -> bool:
        """Whether it reads anything else than what the pipeline is handed."""
        return bool(self.adapter.record.trigger or self.adapter.prompt or self.adapter.text_lora)

    @property
    def lora(self) -> TextLora | None:
        """Its text-encoder LoRA."""
        held = self.adapter.text_lora
        return TextLora(self.adapter.source, held, self.strength) if held else None


@dataclass(frozen=True)
class RunTexts:
    """The texts of one run, encoded."""

    prompts: list[str]
    plain: PromptEmbeds
    negative: PromptEmbeds
    guided: bool  # whether the UNet is handed unconditional rows
    own: Mapping[int, PromptEmbeds]  # by a source's number; its negative prompt first where guided

    def arguments(self, guidance_scale: float) -> dict[str, Any]:
        """What the stock pipeline is called with: the plain embeddings and the guidance scale."""
        plain, negative = self.plain, self.negative
        arguments: dict[str, Any] = {"prompt_embeds": plain.embeds, "guidance_scale": guidance_scale}
        if guidance_scale > 1:
            arguments["negative_prompt_embeds"] = negative.embeds
        if plain.pooled is not None:
            arguments["pooled_prompt_embeds"] = plain.pooled
            if guidance_scale > 1:
                arguments["negative_pooled_prompt_embeds"] = negative.pooled
        return arguments

    def are(self, embeds: Tensor) -> bool:
        """Whether the rows (n or 2n, L, D) that the UNet was handed are the plain embeddings."""
        handed = torch.cat([self.negative.embeds, self.plain.embeds]) if self.guided else self.plain.embeds
        if len(embeds) % len(handed):
            return False
        return torch.equal(_repeated(handed, len(embeds)).to(embeds), embeds)

    def put(self, embeds: Tensor, added: Mapping[str, Tensor], plan: RowPlan, count: int) -> None:
        """Put each source's own text into its planned rows of `embeds` (R, L, D) and SDXL's `text_embeds` (R, D2).

        `count` is the number of rows that the UNet was handed.
        """
        origin = torch.tensor(plan.origin, device=embeds.device)
        for i, text in self.own.items():
            mine = [r for r, source in enumerate(plan.source) if source == i]
            if mine:
                embeds[mine] = _repeated(text.embeds, count)[origin[mine]].to(embeds.dtype)
                if text.pooled is not None:
                    added["text_embeds"][mine] = _repeated(text.pooled, count)[origin[mine]].to(embeds.dtype)


def encode_run(
    backbone: Backbone, readers: Sequence[Reader], prompts: list[str], negative_prompt: str, guided: bool
) -> RunTexts:
    """Encode the prompts for the pipeline, and for each source that reads them in its own way."""
    plain = backbone.encode_prompts(prompts)
    negative = backbone.encode_negative(negative_prompt, len(prompts))
    own = {}
    for i, reader in enumerate(readers):
        if not reader.has_own_text:
            continue
        record = reader.adapter.record
        worded = [f"{record.trigger} {prompt}".strip() for prompt in prompts]
        read = backbone.encode_prompts(worded, reader.adapter.prompt or None, reader.lora)
        if guided:
            against = negative
            if reader.own_unconditional and reader.lora:
                against = backbone.encode_negative(negative_prompt, len(prompts), reader.lora)
            read = _joined(against, read)
        own[i] = read
    return RunTexts(prompts, plain, negative, guided, own)


def _joined(first: PromptEmbeds, second: PromptEmbeds) -> PromptEmbeds:
    pooled = [part.pooled for part in (first, second) if part.pooled is not None]
    return PromptEmbeds(
        torch.cat([first.embeds, second.embeds]),
        torch.cat(pooled) if pooled else None,
        torch.cat([first.mean, second.mean]),
    )


def _repeated(embeds: Tensor, rows: int) -> Tensor:
    """Each prompt's embedding for each of its pictures, in the pipelines' order."""
    return embeds.repeat_interleave(rows // len(embeds), dim=0)
