"""Which words a source's captions are made of: a unigram model over the text encoder's tokens.

    n_i(v), n_i   how often token v stands in source i's captions, and their sum over the V tokens of the vocabulary

    p_i(v) = (n_i(v) + a / V) / (n_i + a)           a = SMOOTHING: what was never seen shares out a of n_i + a
    log p_i(c) = sum over the tokens v of prompt c of log p_i(v)

A source that never saw a token gives it little, whatever the token means: that a word is new is told, and by whom not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from promptcdm.counted import summed

# Fitted on topics of the backbone's own captions taken as pseudo-sources (examples/nano/temperature.py), then frozen.
SMOOTHING = 100.0


@dataclass(frozen=True)
class CaptionWords:
    """How often each token stands in one source's captions; int64, both (W,), tokens ascending, counts above 0."""

    tokens: Tensor
    counts: Tensor

    @classmethod
    def of(cls, captions: Iterable[Sequence[int]]) -> CaptionWords:
        """Count the tokens of captions given as token ids."""
        found = sorted(Counter(token for caption in captions for token in caption).items())
        pairs = torch.tensor(found, dtype=torch.int64).reshape(-1, 2)
        return cls(pairs[:, 0].contiguous(), pairs[:, 1].contiguous())

    def together(self, others: Iterable[CaptionWords]) -> CaptionWords:
        """The counts of all these captions."""
        return CaptionWords(*summed([(part.tokens, part.counts) for part in (self, *others)]))

    def log_likelihood(
        self, prompts: Sequence[Sequence[int]], vocabulary: int, smoothing: float = SMOOTHING
    ) -> Tensor:
        """log p_i(c) of each prompt's token ids, (B,) float32."""
        times = dict(zip(self.tokens.tolist(), self.counts.tolist(), strict=True))
        of = torch.tensor(
            [times.get(token, 0) for prompt in prompts for token in prompt], dtype=torch.float64
        )
        log_p = ((of + smoothing / vocabulary) / (float(self.counts.sum()) + smoothing)).log()
        parts = torch.split(log_p, [len(prompt) for prompt in prompts])
        return torch.stack([part.sum() for part in parts]).float()
