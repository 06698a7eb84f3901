"""`sealed-judge`: finds the things in a picture, looks at each, and reads statements as probabilities.

    picture -> things k, each with o_k, that it is one; P_k(concept); P_k(colour); where it is       (sealed_network)

    "cat"            P = max_k o_k P_k(cat)
    "red cat"        P = max_k o_k P_k(cat) P_k(red)
    "three cat"      P that three of the things are cats, each by itself (Poisson-binomial)
    "cat left dog"   P = max_{j, k} sqrt(o_j P_j(cat) o_k P_k(dog)) P(j is left of k)
    "not cat"        1 - P

Of choices that are not yes and no, P(choice | question) is P over its sum over the choices. Of yes and no, the odds
of P are first brought to where yes and no err alike, by two numbers a kind of statement that the folder holds.

It is the final ruler: for figures that are published, and for nothing else. Whoever selects by it, trains, routes or
forgets by it, breaks the seal. A folder holds `config.json` and `model.safetensors` (fp16).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import Tensor, nn

from promptcdm.answer import Answer, Asked, CannotAnswer, most_likely
from promptcdm.errors import BadInput
from promptcdm.question_words import COLORS, NUMBERS
from promptcdm.sealed_names import Names
from promptcdm.sealed_network import SIZE, Finder, Namer, boxes_of, crops, ink_boxes
from promptcdm.square_picture import image_tensor
from promptcdm.statements import statement
from promptcdm.tensorfile import read_tensors, tensor_digest, write_json, write_tensors

_READING = "sealed 1"  # a new number with every change of how statements are read
_IMAGES_AT_ONCE = 32
_LEAST = 1e-6  # no probability is below it, nor as near to 1
_WHOLE = 0.3  # what the crop of all that is drawn counts beside things that were found
_ALIKE = 0.5  # how much less sure a thing of the same kind may be and still be counted
_SPREAD = 0.08  # of the picture's side: the distance at which a direction is sure
_RELATIONS = {"left": (0, -1.0), "right": (0, 1.0), "above": (1, -1.0), "below": (1, 1.0)}
_ANYTHING = {"", "thing", "object", "item", "one"}
KINDS = ("presence", "color", "count", "position")


@dataclass(frozen=True)
class SealedConfig:
    """What builds the networks: the names of each concept, colours, and the odds of yes, a + b log-odds, by kind."""

    names: tuple[tuple[str, ...], ...]
    colors: tuple[str, ...]
    odds: Mapping[str, tuple[float, float]] = field(default_factory=lambda: dict.fromkeys(KINDS, (0.0, 1.0)))

    def build(self) -> nn.ModuleDict:
        """The networks with random weights."""
        return nn.ModuleDict({"finder": Finder(), "namer": Namer(len(self.names), len(self.colors))})


@dataclass(frozen=True)
class Phrase:
    """A thing as a statement names it."""

    noun: str
    number: int | None = None
    color: str = ""


@dataclass(frozen=True)
class Said:
    """A statement taken apart."""

    denied: bool
    first: Phrase
    relation: str = ""
    second: Phrase | None = None

    @property
    def kind(self) -> str:
        """Of KINDS."""
        if self.relation:
            return "position"
        if self.first.number is not None:
            return "count"
        return "color" if self.first.color else "presence"


@dataclass(frozen=True)
class Seen:
    """The things of one picture; the last is the crop of all that is drawn, which is no found thing."""

    sure: Tensor  # (k,) that it is a thing
    concepts: Tensor  # (k, C) probabilities
    colors: Tensor  # (k, colours) probabilities
    middles: Tensor  # (k, 2) across and down, in 0..1


class SealedJudge:
    """Answers from what it finds. Pictures of any size; it reads 64 pixels a side."""

    def __init__(
        self, model: nn.ModuleDict, config: SealedConfig, device: str = "cpu", name: str = "sealed-judge"
    ) -> None:
        self.name = name
        odds = {kind: [round(value, 4) for value in pair] for kind, pair in sorted(config.odds.items())}
        self.version = (
            f"{_READING}, weights {tensor_digest(model.state_dict())[:16]}, odds {json.dumps(odds)}"
        )
        self.blind = False
        self.model = model.eval().to(device)
        self._names = Names(config.names)
        self._config = config
        self._device = device

    def answers(self, batch: Sequence[Asked]) -> list[Answer]:
        """The most likely choice of each question. Raises CannotAnswer for a thing whose name it does not know."""
        images = {id(asked.image): asked.image for asked in batch}
        said = [[read(statement(asked.question, choice)) for choice in asked.choices] for asked in batch]
        for asked, row in zip(batch, said, strict=True):
            self._check(asked, row)
        seen = dict(zip(images, self.look(list(images.values())), strict=True))
        return [
            most_likely(asked.choices, self._probabilities(seen[id(asked.image)], row))
            for asked, row in zip(batch, said, strict=True)
        ]

    def answer(self, image: Image.Image, question: str, choices: Sequence[str]) -> Answer:
        """The most likely choice."""
        return self.answers([Asked(image, question, tuple(choices))])[0]

    @torch.inference_mode()
    def look(self, images: Sequence[Image.Image]) -> list[Seen]:
        """What is in each picture."""
        seen = []
        for start in range(0, len(images), _IMAGES_AT_ONCE):
            part = images[start : start + _IMAGES_AT_ONCE]
            pictures = (torch.stack([image_tensor(image, SIZE) for image in part]) + 1) / 2
            seen += self._look(pictures.to(self._device))
        return seen

    def _look(self, pictures: Tensor) -> list[Seen]:
        finder, namer = cast(Finder, self.model["finder"]), cast(Namer, self.model["namer"])
        found = boxes_of(finder(pictures))
        whole = ink_boxes(pictures)
        numbers = [number for number, (boxes, _) in enumerate(found) for _ in range(len(boxes) + 1)]
        boxes = torch.cat([torch.cat([own, whole[number][None]]) for number, (own, _) in enumerate(found)])
        concepts, colors = namer(crops(pictures[numbers], boxes))
        seen, start = [], 0
        for own, sure in found:
            part = slice(start, start + len(own) + 1)
            alone = torch.tensor([_WHOLE if len(own) > 1 else 1.0], device=sure.device)
            middles = (boxes[part, :2] + boxes[part, 2:]) / 2
            parts = torch.cat([sure, alone]), concepts[part].softmax(1), colors[part].softmax(1), middles
            seen.append(Seen(*(tensor.cpu() for tensor in parts)))
            start = part.stop
        return seen

    def probability(self, seen: Seen, said: Said) -> float:
        """P of a statement, before its odds are moved and as if it were not denied."""
        first = self._named(seen, said.first.noun) * self._colored(seen, said.first.color)
        if said.relation and said.second is not None:
            second = self._named(seen, said.second.noun) * self._colored(seen, said.second.color)
            return _related(seen, first, second, said.relation)
        if said.first.number is not None:
            return (
                _counted(seen, first)[said.first.number] if said.first.number <= len(seen.sure) - 1 else 0.0
            )
        return float((seen.sure * first).max())

    def _probabilities(self, seen: Seen, row: Sequence[Said]) -> list[float]:
        chances = [min(max(self.probability(seen, said), _LEAST), 1 - _LEAST) for said in row]
        if len(row) == 2 and row[0].denied != row[1].denied and row[0].first == row[1].first:
            a, b = self._config.odds[row[0].kind]
            odds = [a + b * math.log(chance / (1 - chance)) for chance in chances]
            chances = [1 / (1 + math.exp(-each)) for each in odds]
        chances = [1 - chance if said.denied else chance for chance, said in zip(chances, row, strict=True)]
        return [chance / sum(chances) for chance in chances]

    def _named(self, seen: Seen, noun: str) -> Tensor:
        """(k,) that a thing is so called."""
        if noun in _ANYTHING:
            return torch.ones(len(seen.sure))
        return seen.concepts[:, list(self._names.covered(noun))].sum(1)

    def _colored(self, seen: Seen, color: str) -> Tensor:
        if not color:
            return torch.ones(len(seen.sure))
        return seen.colors[:, self._config.colors.index(color)]

    def _check(self, asked: Asked, row: Sequence[Said]) -> None:
        for said in row:
            for phrase in (said.first, said.second):
                if phrase is None:
                    continue
                known = phrase.noun in _ANYTHING or self._names.covered(phrase.noun)
                if not known or (phrase.color and phrase.color not in self._config.colors):
                    raise CannotAnswer(
                        f"{asked.question!r}: sealed-judge does not know {f'{phrase.color} {phrase.noun}'.strip()!r}"
                    )


def read(text: str) -> Said:
    """Take a statement apart."""
    denied = text.startswith("not ")
    words = text.split()[1:] if denied else text.split()
    for place, word in enumerate(words):
        if word in _RELATIONS and 0 < place < len(words) - 1:
            return Said(denied, _phrase(words[:place]), word, _phrase(words[place + 1 :]))
    return Said(denied, _phrase(words))


def _phrase(words: Sequence[str]) -> Phrase:
    number: int | None = None
    color, noun = "", list[str]()
    for word in words:
        if number is None and not noun and (word in NUMBERS or word.isdigit()):
            number = NUMBERS[word] if word in NUMBERS else int(word)
        elif not color and not noun and word in COLORS:
            color = "gray" if word == "grey" else word
        else:
            noun.append(word)
    return Phrase(" ".join(noun), number, color)


def _counted(seen: Seen, first: Tensor) -> list[float]:
    """P(n of the found things are of this kind), for each n from none to all."""
    surest = first[:-1].max() if len(first) > 1 else first.new_zeros(())
    own = seen.sure[:-1] * (first[:-1] / surest.clamp_min(_LEAST)) ** _ALIKE
    chances = [1.0]
    for p in own.tolist():
        more, fewer = [0.0, *(c * p for c in chances)], [*(c * (1 - p) for c in chances), 0.0]
        chances = [a + b for a, b in zip(more, fewer, strict=True)]
    return chances


def _related(seen: Seen, first: Tensor, second: Tensor, relation: str) -> float:
    """The best pair of things whose first is on that side of the second."""
    axis, sign = _RELATIONS[relation]
    places = seen.middles[:-1, axis]
    if len(places) < 2:
        return 0.0
    one, other = (seen.sure * first)[:-1], (seen.sure * second)[:-1]
    sided = torch.sigmoid(sign * (places[:, None] - places[None]) / _SPREAD)
    pairs = (one[:, None] * other[None]).sqrt() * sided
    return float(pairs.fill_diagonal_(0.0).max())


def save_sealed(folder: Path, model: nn.Module, config: SealedConfig) -> None:
    """Write `config.json` and `model.safetensors` (floating tensors as fp16)."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {n: t.half() if t.is_floating_point() else t for n, t in model.state_dict().items()}
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_json(
        folder / "config.json",
        {
            "concepts": [list(names) for names in config.names],
            "colors": list(config.colors),
            "odds": {kind: list(pair) for kind, pair in config.odds.items()},
        },
    )


def load_sealed(folder: Path, device: str = "cpu", name: str = "sealed-judge") -> SealedJudge:
    """Load a folder that `save_sealed` wrote. Raises BadInput where it lacks a file or the files do not fit."""
    config = read_config(folder / "config.json")
    tensors, _ = read_tensors(folder / "model.safetensors")
    model = config.build()
    try:
        model.load_state_dict({n: t.float() if t.is_floating_point() else t for n, t in tensors.items()})
    except RuntimeError as error:
        raise BadInput(
            f"{folder}: model.safetensors does not fit config.json; fetch the folder again"
        ) from error
    return SealedJudge(model, config, device, name)


def read_config(path: Path) -> SealedConfig:
    """Read `config.json`. Raises BadInput."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        names = tuple(tuple(map(str, each)) for each in raw["concepts"])
        odds = {kind: (float(raw["odds"][kind][0]), float(raw["odds"][kind][1])) for kind in KINDS}
        return SealedConfig(names, tuple(map(str, raw["colors"])), odds)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); give a sealed-judge folder") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise BadInput(f"{path}: is not a sealed-judge config ({error!r}); fetch the folder again") from error
