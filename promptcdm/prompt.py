"""Text to embeddings, with a source's learned tokens directly after the start token.

A soft prompt is n input embeddings of the text encoder, compatible with textual inversion: a stock prompt
"<NAME> text" with the file loaded gives the same embeddings. Nothing shared is changed: the text encoder runs with an
extended embedding table through `functional_call`.

    prompt_embeds   (B, L, D) of one text encoder; SDXL: both encoders' joined along D
    pooled          (B, D2), SDXL only
    soft            {"text_encoder": (n, D)[, "text_encoder_2": (n, D2)]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Tokenizer(Protocol):
    """What is used of a transformers CLIPTokenizer."""

    model_max_length: int
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Mapping[str, list[list[int]]]: ...


@dataclass(frozen=True)
class PromptEmbeds:
    """What the UNet is conditioned on."""

    embeds: Tensor  # (B, L, D)
    pooled: Tensor | None  # (B, D2), SDXL only
    mean: Tensor  # (B, D) mean over the words of the first encoder, for caption prototypes


def token_ids(tokenizer: Tokenizer, prompts: Sequence[str], soft_tokens: int) -> tuple[Tensor, Tensor]:
    """Token ids (B, L), the k-th soft token as -1 - k, and the end token's place (B,)."""
    length = tokenizer.model_max_length
    rows, ends = [], []
    for words in tokenizer(list(prompts), add_special_tokens=False)["input_ids"]:
        words = [-1 - k for k in range(soft_tokens)] + words
        words = words[: length - 2]
        ends.append(len(words) + 1)
        row = [tokenizer.bos_token_id, *words, tokenizer.eos_token_id]
        rows.append(row + [tokenizer.pad_token_id] * (length - len(row)))
    return torch.tensor(rows), torch.tensor(ends)


def encode_text(
    encoder: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    soft: Tensor | None,
    *,
    penultimate: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (B, L, D), projected embedding at the true end token (B, D2) and mean over the words (B, D)."""
    table = encoder.get_input_embeddings()  # type: ignore[operator]
    weight = table.weight
    name = next(n for n, p in encoder.named_parameters() if p is weight)
    ids, ends = token_ids(tokenizer, prompts, 0 if soft is None else len(soft))
    ids, ends = ids.to(weight.device), ends.to(weight.device)
    extended = weight if soft is None else torch.cat([weight, soft.to(weight)])
    ids = torch.where(ids < 0, len(weight) - 1 - ids, ids)
    options = {"output_hidden_states": True, "return_dict": True}
    # The plain call also serves where a pipeline keeps the weights away until then (sequential offload).
    changed = {} if soft is None else {name: extended}
    output = functional_call(encoder, changed, (ids,), options) if changed else encoder(ids, **options)
    # A text model with a projection names its last state otherwise; pooling by the largest id would take a soft token.
    last = output.last_hidden_state
    end_state = last[torch.arange(len(last), device=last.device), ends]
    projection = getattr(encoder, "text_projection", None)
    pooled = end_state if projection is None else projection(end_state)
    hidden = output.hidden_states[-2] if penultimate else last
    place = torch.arange(ids.shape[1], device=ids.device)
    words = (place > 0) & (place <= ends[:, None].clamp(min=1))
    mean = (last * words[..., None]).sum(1) / words.sum(1, keepdim=True)
    return hidden, pooled, mean


def encode_prompts(
    encoders: Mapping[str, nn.Module],
    tokenizers: Mapping[str, Tokenizer],
    prompts: Sequence[str],
    soft: Mapping[str, Tensor] | None = None,
) -> PromptEmbeds:
    """Embed prompts as the stock pipelines do (SD 1.x and 2.x: last state; SDXL: both encoders' last but one)."""
    soft = soft or {}
    sdxl = "text_encoder_2" in encoders
    parts = {
        name: encode_text(encoder, tokenizers[name], prompts, soft.get(name), penultimate=sdxl)
        for name, encoder in encoders.items()
    }
    first = next(iter(parts.values()))
    embeds = torch.cat([hidden for hidden, _, _ in parts.values()], dim=-1)
    return PromptEmbeds(embeds, parts["text_encoder_2"][1] if sdxl else None, first[2])
