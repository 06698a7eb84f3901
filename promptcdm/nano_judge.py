"""`nano-judge`: a small open_clip model that answers multiple-choice questions by likelihood.

    P(choice | image, question) = softmax over the choices of  s S(image, statement(question, choice))    (1)

    "red cat"        S = max over regions r of <f_r, g("red cat")>        it is somewhere
    "not red cat"    S = min over regions r of <f_r, g("not red cat")>    it is nowhere
    "three cat"      S = <f_whole, g("three cat")>                        numbers are read from the whole
    "cat left dog"   S = (<f_left, g("cat")> + <f_right, g("dog")>) / 2   positions from two halves
    "not cat left dog"   max(<f_left, g("not cat")>, <f_right, g("not dog")>)

f and g are the towers of an `open_clip.model.CLIP` with its own vocabulary of words, s its learned scale. f_r
is the image tower with its last layer, the attention pool, over a region only: the whole picture, a half or a
quarter, and where the grid has four places a side or more, those in the middle too. A folder holds `config.json`
(the towers' settings, the vocabulary) and `model.safetensors` (fp16).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from PIL import Image
from torch import Tensor

from promptcdm.answer import Answer, Asked, most_likely
from promptcdm.errors import BadInput
from promptcdm.question_words import NUMBERS
from promptcdm.square_picture import image_tensor
from promptcdm.statements import statement
from promptcdm.tensorfile import read_tensors, tensor_digest, write_json, write_tensors

_PAD, _UNKNOWN = 0, 1
_IMAGES_AT_ONCE = 64
_READING = "statements 2"  # a new number with every change of `read`, `score` or the statements
# A region is a span of rows by a span of columns; a span is 0 the whole, 1 the first half, 2 the second, 3 the middle.
_WHOLE, _LEFT, _RIGHT, _UPPER, _LOWER = (0, 0), (0, 1), (0, 2), (1, 0), (2, 0)
_HALVES = {
    "left": (_LEFT, _RIGHT),
    "right": (_RIGHT, _LEFT),
    "above": (_UPPER, _LOWER),
    "below": (_LOWER, _UPPER),
}
_NUMBER_WORDS = set(NUMBERS)

Way = Literal["anywhere", "whole", "halves"]
Region = tuple[int, int]


@dataclass(frozen=True)
class Reading:
    """What is compared with a picture to score a statement: two texts, each with its region."""

    way: Way
    texts: tuple[str, str]  # the same twice, but for halves
    regions: tuple[Region, Region]
    denied: bool  # the statement begins with "not"


@dataclass(frozen=True)
class Vocabulary:
    """One token a word; 0 pads, 1 is an unknown word, the highest ends a text (open_clip pools there)."""

    words: tuple[str, ...]
    context_length: int

    @property
    def size(self) -> int:
        """How many token ids there are."""
        return len(self.words) + 3

    def encode(self, statements: Sequence[str]) -> Tensor:
        """Token ids (n, context_length); a longer statement is cut."""
        ids = {word: index for index, word in enumerate(self.words, start=2)}
        tokens = torch.full((len(statements), self.context_length), _PAD, dtype=torch.long)
        for row, text in enumerate(statements):
            known = [ids.get(word, _UNKNOWN) for word in text.split()][: self.context_length - 1]
            tokens[row, : len(known) + 1] = torch.tensor([*known, self.size - 1])
        return tokens


@dataclass(frozen=True)
class NanoConfig:
    """What builds the two towers."""

    embed_dim: int
    vision: Mapping[str, Any]  # fields of open_clip's CLIPVisionCfg
    text: Mapping[str, Any]  # fields of CLIPTextCfg but the vocabulary's
    vocabulary: Vocabulary

    @property
    def image_size(self) -> int:
        """Pixels a side."""
        return int(self.vision["image_size"])

    def build(self) -> CLIP:
        """The model with random weights."""
        text = {
            **self.text,
            "vocab_size": self.vocabulary.size,
            "context_length": self.vocabulary.context_length,
        }
        return CLIP(self.embed_dim, CLIPVisionCfg(**self.vision), CLIPTextCfg(**text), quick_gelu=False)


class NanoJudge:
    """Answers by equation (1). Pictures of any size; what it reads is `config.image_size` pixels a side."""

    def __init__(
        self, model: CLIP, config: NanoConfig, device: str = "cpu", name: str = "nano-judge"
    ) -> None:
        self.name = name
        self.version = f"{_READING}, weights {tensor_digest(model.state_dict())[:16]}"
        self.blind = False
        self._model = model.eval().to(device)
        self._config = config
        self._device = device

    def answers(self, batch: Sequence[Asked]) -> list[Answer]:
        """The most likely choice of each question."""
        return [
            most_likely(asked.choices, probabilities)
            for asked, probabilities in zip(batch, self.probabilities(batch), strict=True)
        ]

    def answer(self, image: Image.Image, question: str, choices: Sequence[str]) -> Answer:
        """The most likely choice."""
        return self.answers([Asked(image, question, tuple(choices))])[0]

    def probabilities(self, batch: Sequence[Asked]) -> list[tuple[float, ...]]:
        """P(choice | image, question) for each (image, question, choices)."""
        images = {id(image): image for image, _, _ in batch}
        places = {key: place for place, key in enumerate(images)}
        asked = [[statement(question, choice) for choice in choices] for _, question, choices in batch]
        readings = {text: read(text) for row in asked for text in row}
        columns = {text: column for column, text in enumerate(readings)}
        texts = texts_of(readings.values())
        with torch.inference_mode():
            pictures = self._encode_images(list(images.values()))
            tokens = self._config.vocabulary.encode(texts).to(self._device)
            said = self._model.encode_text(tokens, normalize=True)
            scores = score(pictures @ said.T, texts, list(readings.values()))
            scores = self._model.logit_scale.exp() * scores
        found = []
        for (image, _, _), row in zip(batch, asked, strict=True):
            own = scores[places[id(image)], [columns[text] for text in row]]
            found.append(tuple(float(p) for p in own.softmax(0)))
        return found

    def _encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = torch.stack([image_tensor(image, self._config.image_size) for image in images])
        parts = [
            encode_regions(self._model, part.to(self._device))
            for part in torch.split(pixels, _IMAGES_AT_ONCE)
        ]
        return torch.cat(parts)


def encode_regions(model: CLIP, images: Tensor) -> Tensor:
    """Unit embeddings (B, R, D) of every region; the first, the whole, is `encode_image`'s."""
    visual = model.visual
    grid = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(images)))))
    pool = visual.attnpool
    tokens = grid.flatten(2).transpose(1, 2)  # (B, places, width)
    inside = _regions(grid.shape[-1]).to(tokens)  # (R, places), 1 inside
    means = inside / inside.sum(1, keepdim=True) @ tokens + pool.positional_embedding[0].to(tokens)
    tokens = tokens + pool.positional_embedding[1:].to(tokens)
    heads = pool.num_heads
    query = _by_head(pool.q_proj(means), heads)  # (B, heads, R, width / heads)
    own = (query * _by_head(pool.k_proj(means), heads)).sum(-1, keepdim=True)
    others = query @ _by_head(pool.k_proj(tokens), heads).transpose(-1, -2)
    others = others.masked_fill(inside == 0, -torch.inf)
    weights = (torch.cat([own, others], -1) * query.shape[-1] ** -0.5).float().softmax(-1).to(tokens)
    seen = weights[..., :1] * _by_head(pool.v_proj(means), heads)
    seen = seen + weights[..., 1:] @ _by_head(pool.v_proj(tokens), heads)
    return F.normalize(pool.c_proj(seen.transpose(1, 2).flatten(2)).float(), dim=-1)


def read(statement: str) -> Reading:
    """How a statement is read: "cat left dog" from two halves, "three cat" from the whole, "cat" from anywhere."""
    denied = statement.startswith("not ")
    words = statement.split()[1:] if denied else statement.split()
    for place, word in enumerate(words):
        if word in _HALVES and 0 < place < len(words) - 1:
            prefix = "not " if denied else ""
            things = " ".join(words[:place]), " ".join(words[place + 1 :])
            return Reading("halves", (prefix + things[0], prefix + things[1]), _HALVES[word], denied)
    way: Way = "whole" if _NUMBER_WORDS & set(words) else "anywhere"
    return Reading(way, (statement, statement), (_WHOLE, _WHOLE), denied)


def texts_of(readings: Iterable[Reading]) -> list[str]:
    """The texts that the readings compare with pictures, each once."""
    return list(dict.fromkeys(text for reading in readings for text in reading.texts))


def score(similar: Tensor, texts: Sequence[str], readings: Sequence[Reading]) -> Tensor:
    """S of equation (1): similarities (B, R, texts) and readings to (B, readings)."""
    places = {text: place for place, text in enumerate(texts)}
    spans = math.isqrt(similar.shape[1])

    def number(region: Region) -> int:  # a grid of one place has one region only, the whole
        return min(region[0], spans - 1) * spans + min(region[1], spans - 1)

    first, second = (
        similar[:, [number(r.regions[n]) for r in readings], [places[r.texts[n]] for r in readings]]
        for n in range(2)
    )
    columns = [places[reading.texts[0]] for reading in readings]
    anywhere = torch.tensor([reading.way == "anywhere" for reading in readings], device=similar.device)
    denied = torch.tensor([reading.denied for reading in readings], device=similar.device)
    somewhere, nowhere = similar.amax(1)[:, columns], similar.amin(1)[:, columns]
    given = torch.where(anywhere, somewhere, (first + second) / 2)
    return torch.where(denied, torch.where(anywhere, nowhere, torch.maximum(first, second)), given)


def _regions(side: int) -> Tensor:
    """(R, side * side): which places of the grid belong to each span of rows by each span of columns."""
    whole, low, middle = torch.ones(side), torch.zeros(side), torch.zeros(side)
    low[: side // 2] = 1
    middle[side // 4 : side - side // 4] = 1
    spans = [whole, low, 1 - low, middle][: 1 if side % 2 else 3 if side < 4 else 4]
    return torch.stack([torch.outer(rows, columns).flatten() for rows in spans for columns in spans])


def _by_head(rows: Tensor, heads: int) -> Tensor:
    """(B, n, width) to (B, heads, n, width / heads)."""
    return rows.reshape(*rows.shape[:2], heads, -1).transpose(1, 2)


def save_nano(folder: Path, model: CLIP, config: NanoConfig) -> None:
    """Write `config.json` and `model.safetensors` (floating tensors as fp16)."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    vocabulary = {"words": list(config.vocabulary.words), "context_length": config.vocabulary.context_length}
    write_json(
        folder / "config.json",
        {
            "embed_dim": config.embed_dim,
            "vision": dict(config.vision),
            "text": dict(config.text),
            "vocabulary": vocabulary,
        },
    )


def load_nano(folder: Path, device: str = "cpu") -> NanoJudge:
    """Load a folder that `save_nano` wrote. Raises BadInput where it lacks a file or the files do not fit."""
    config = _read_config(folder / "config.json")
    tensors, _ = read_tensors(folder / "model.safetensors")
    model = config.build()
    try:
        model.load_state_dict(
            {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
        )
    except RuntimeError as error:
        raise BadInput(
            f"{folder}: model.safetensors does not fit config.json; fetch the folder again"
        ) from error
    return NanoJudge(model, config, device)


def _read_config(path: Path) -> NanoConfig:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        words = raw["vocabulary"]
        vocabulary = Vocabulary(tuple(words["words"]), int(words["context_length"]))
        return NanoConfig(int(raw["embed_dim"]), raw["vision"], raw["text"], vocabulary)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); give a nano-judge folder") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: is not a nano-judge config ({error!r}); fetch the folder again") from error
