"""pi_i(c): closed forms of the words' model, and what the prior makes of names, neighbours and news."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from promptcdm.caption_words import CaptionWords
from promptcdm.prompt_prior import WORD_TEMPERATURE, PromptFeatures, prompt_prior

V = 10


@dataclass(frozen=True)
class Known:
    """What one source says of its captions."""

    caption_prototypes: Tensor
    caption_words: CaptionWords


def features(mean: list[list[float]], tokens: list[list[int]]) -> PromptFeatures:
    return PromptFeatures(torch.tensor(mean), tokens, V)


def test_words_are_counted_over_all_captions() -> None:
    words = CaptionWords.of([[5, 2, 5], [2, 9]])
    assert (words.tokens.tolist(), words.counts.tolist()) == ([2, 5, 9], [2, 2, 1])
    assert CaptionWords.of([[], []]).tokens.shape == (0,)


def test_the_likelihood_is_the_smoothed_share() -> None:
    words = CaptionWords.of([[1, 1, 2]])
    got = words.log_likelihood([[1, 2], [7], []], V, smoothing=2.0)
    assert got.tolist() == pytest.approx(
        [math.log((2 + 0.2) / 5) + math.log((1 + 0.2) / 5), math.log(0.2 / 5), 0.0]
    )
    every = words.log_likelihood([[token] for token in range(V)], V, smoothing=2.0)
    assert float(every.exp().sum()) == pytest.approx(1.0)


def test_the_words_of_slices_together_are_the_words_of_the_whole() -> None:
    captions = [[3, 1], [1, 1, 8], [3]]
    whole, parts = CaptionWords.of(captions), [CaptionWords.of([caption]) for caption in captions]
    for order in (parts, parts[::-1]):
        got = order[0].together(order[1:])
        assert torch.equal(got.tokens, whole.tokens)
        assert torch.equal(got.counts, whole.counts)
    assert torch.equal(parts[0].together([]).counts, parts[0].counts)


def test_a_name_that_one_source_has_said_finds_it_though_the_embeddings_say_nothing() -> None:
    same = torch.eye(4)[:1]
    zoo, road = Known(same, CaptionWords.of([[0, 4]] * 30)), Known(same, CaptionWords.of([[0, 5]] * 30))
    odds = ((30 + 10) / 10) ** (1 / WORD_TEMPERATURE)  # 100 unseen ones over 10 tokens: 10 each
    prior = prompt_prior(features([[1.0, 0, 0, 0]] * 3, [[0, 4], [0, 5], [0]]), [zoo, road])
    assert prior[0, 0] == pytest.approx(odds / (1 + odds))
    assert prior[1, 1] == pytest.approx(float(prior[0, 0]))
    assert prior[2].tolist() == pytest.approx([0.5, 0.5])


def test_where_no_source_has_said_the_words_the_nearest_prototype_decides() -> None:
    said = CaptionWords.of([[0, 1]] * 10)
    animals, food = Known(torch.eye(4)[:2], said), Known(torch.eye(4)[2:], said)
    prior = prompt_prior(features([[0.9, 0.1, 0, 0], [0, 0, 0.2, 2.0]], [[6], [7]]), [animals, food])
    assert prior[0, 0] > 0.99
    assert prior[1, 1] > 0.99
    equal = prompt_prior(features([[1.0, 1, 1, 1]], [[6]]), [animals, food])
    assert equal[0].tolist() == pytest.approx([0.5, 0.5])


def test_the_others_weights_keep_their_ratio_when_a_source_is_taken_away() -> None:
    """It is p_i over their sum: nothing that one source knows is in another's figure."""
    known = [Known(torch.eye(4)[[i]], CaptionWords.of([[i, 5]] * (i + 1))) for i in range(3)]
    asked = features([[0.5, 0.2, 0.9, 0.0]], [[1, 5, 5]])
    three, two = prompt_prior(asked, known)[0], prompt_prior(asked, known[:2])[0]
    torch.testing.assert_close(three[:2] / three[:2].sum(), two)
