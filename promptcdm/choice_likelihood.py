"""How likely a model that reads picture and text and goes on writing finds each choice of a question.

    log p(choice) = sum over its tokens of log p(token | picture, question, the tokens before it)

Through transformers' own `generate`, which knows every family's masks, positions and caches: each choice is read off
from what the model would write next, along a beginning that it is made to write. Choices with one beginning share a
row: of yes and no, and of all others of one token each, the beginning is empty, and a question is one row of one step.
Rows of one shape go through the model together, so that none is padded, and none is answered differently beside others.

    R   rows            L   tokens of the prompt
    V   vocabulary      T   tokens of the longest beginning, and one
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Tokens = tuple[int, ...]
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class _Row:
    """A question and a beginning of one or more of its choices."""

    question: int
    beginning: Tokens


def choice_scores(
    model: Any, prompts: Sequence[Inputs], choices: Sequence[Sequence[Tokens]], at_once: int
) -> list[list[float]]:
    """log p of each choice, tokens of it at least one, after each prompt of one row; `at_once` rows at most."""
    rows = [_Row(q, b) for q, own in enumerate(choices) for b in beginnings(own)]
    groups: dict[Any, list[_Row]] = {}
    for row in rows:
        shapes = tuple((name, tuple(value.shape)) for name, value in sorted(prompts[row.question].items()))
        groups.setdefault((shapes, len(row.beginning)), []).append(row)
    found: list[list[float]] = [[0.0] * len(own) for own in choices]
    for group in groups.values():
        for start in range(0, len(group), at_once):
            part = group[start : start + at_once]
            inputs = [prompts[row.question] for row in part]
            together = {name: torch.cat([each[name] for each in inputs]) for name in inputs[0]}
            log_p = _along(model, together, [row.beginning for row in part])
            for row, steps in zip(part, log_p, strict=True):
                for place, tokens in enumerate(choices[row.question]):
                    if row.beginning[: len(tokens) - 1] == tokens[:-1]:
                        read = zip(steps[: len(tokens)], tokens, strict=True)
                        found[row.question][place] = sum(float(step[token]) for step, token in read)
    return found


def beginnings(choices: Sequence[Tokens]) -> list[Tokens]:
    """The choices without their last tokens, each once, and none that another goes on from."""
    different = sorted({tokens[:-1] for tokens in choices})
    return [b for b in different if not any(o != b and o[: len(b)] == b for o in different)]


def _along(model: Any, inputs: Inputs, beginnings: Sequence[Tokens]) -> Tensor:
    """log p (R, T, V) of what comes next after each prompt and along its beginning, all of one length."""
    forced = torch.tensor(beginnings, device=inputs["input_ids"].device, dtype=torch.long)
    written = model.generate(
        **inputs,
        logits_processor=[_Forced(forced.reshape(len(beginnings), -1), inputs["input_ids"].shape[1])],
        max_new_tokens=len(beginnings[0]) + 1,
        do_sample=False,
        num_beams=1,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack([step.float().log_softmax(-1) for step in written.logits], 1).cpu()


@dataclass(frozen=True)
class _Forced:
    """Leaves the model no other token than the beginning's, while there are any."""

    tokens: Tensor  # (R, T - 1)
    prompt: int  # L

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt
        if step >= self.tokens.shape[1]:
            return scores
        only = torch.full_like(scores, -torch.inf)
        return only.scatter_(1, self.tokens[:, step : step + 1], 0.0)
