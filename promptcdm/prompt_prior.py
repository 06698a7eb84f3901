"""pi_i(c): how far each source, by its captions alone, expects a prompt.

    pi_i(c)  ∝  p_i(words of c)^(1 / T_w)  exp(max_m cos(c, prototype_im) / T_c)

The words know names: the one source whose captions hold "giraffe" is found however it is asked for. The embeddings know
neighbours: "a cub" is nearer to captions of bears than to captions of buses, though no caption says it. A prompt whose
words no source has said leaves the embeddings, and in the end 1 / N, to decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from promptcdm.caption_words import CaptionWords

# Fitted on topics of the backbone's own pictures taken as pseudo-sources (examples/nano/temperature.py), then frozen: a
# value tuned on the sources would outlive forgetting them.
WORD_TEMPERATURE = 1.5
PROTOTYPE_TEMPERATURE = 0.05


@dataclass(frozen=True)
class PromptFeatures:
    """What a router reads of B prompts."""

    mean: Tensor  # (B, D) mean over the words of the text encoder's last state
    tokens: Sequence[Sequence[int]]  # B prompts' token ids, without start and end
    vocabulary: int  # tokens there are


class CaptionStatistics(Protocol):
    """What one source says of its captions: `promptcdm.adapter.Statistics` is one."""

    @property
    def caption_prototypes(self) -> Tensor:
        """(M, D) centres of the captions' embeddings."""

    @property
    def caption_words(self) -> CaptionWords:
        """How often each token stands in the captions."""


def prompt_prior(
    prompts: PromptFeatures,
    known: Sequence[CaptionStatistics],
    *,
    word_temperature: float = WORD_TEMPERATURE,
    prototype_temperature: float = PROTOTYPE_TEMPERATURE,
) -> Tensor:
    """pi_i(c), (B, N), of N sources, on the device of the prompts."""
    mean = F.normalize(prompts.mean.float(), dim=1)
    nearest = [(mean @ F.normalize(s.caption_prototypes.to(mean), dim=1).T).amax(1) for s in known]
    words = [s.caption_words.log_likelihood(prompts.tokens, prompts.vocabulary).to(mean) for s in known]
    score = torch.stack(words, 1) / word_temperature + torch.stack(nearest, 1) / prototype_temperature
    return score.softmax(1)
