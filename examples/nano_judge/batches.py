"""What one training step looks at and is asked, made on the CPU: scenes, statements and the indices of the losses."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pictures import Pictures
from tasks import KINDS, Asked, ask_scene
from torch import Tensor
from torch.utils.data import Dataset

from promptcdm.nano_judge import Vocabulary, read, texts_of

from scenes import Sprites, make_scene  # isort: skip

SEED = 17
SINGLES = 50  # of 100 pictures of a batch
SCENES = {"pair": 2, "list": 3, "count": 6, "mixed count": 3, "colour": 2, "colour pair": 4}  # shares


@dataclass(frozen=True)
class Batch:
    """B pictures, singles first, and S statements about them, of which the first L are the labels they show."""

    singles: Tensor  # (n,) places in Pictures
    scenes: Tensor  # (B - n, 64, 64, 3) uint8
    coloured: Tensor  # (B,) bool: the hues carry what is asked
    statements: tuple[str, ...]
    tokens: Tensor  # of texts_of(the statements' readings)
    own: Tensor  # (B, L) bool: the label is shown
    absent: Tensor  # (B, L) bool: it is surely not; a label that shares a word with a shown one is neither
    doubted: Tensor  # (D,) labels that are asked for by "is there a ...?"
    denied: Tensor  # (D,) their "not ..."
    groups: dict[
        str, tuple[Tensor, Tensor, Tensor]
    ]  # kind -> pictures (G, 1), statements (G, choices), right (G,)
    shown: Tensor  # (2, n) pictures and the anchors of what they show
    near: Tensor  # (B, anchors) bool: no wrong answer, for a word that they share
    said: Tensor  # (L,) anchors of the labels


class Batches(Dataset[Batch]):
    """Batch number i, a function of i alone, so that worker processes and resuming change nothing."""

    def __init__(
        self,
        pictures: Pictures,
        sprites: Sprites,
        vocabulary: Vocabulary,
        anchors: Sequence[str],
        size: int,
        steps: int,
    ) -> None:
        self.labels, self.coloured, self.sprites = pictures.labels, pictures.coloured, sprites
        self.vocabulary, self.size, self.steps = vocabulary, size, steps
        self.places = {label: place for place, label in enumerate(anchors)}
        self.words = _words(anchors, vocabulary)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        rng = random.Random(f"{SEED} {step}")
        asked, alone = Asked(), self.size * SINGLES // 100
        singles = [rng.randrange(len(self.labels)) for _ in range(alone)]
        for image, index in enumerate(singles):
            asked.present[image] = (self.labels[index],)
        scenes, coloured = [], [bool(self.coloured[index]) for index in singles]
        for image in range(alone, self.size):
            (kind,) = rng.choices(list(SCENES), list(SCENES.values()))
            scene = make_scene(self.sprites, rng.getrandbits(48), kind)
            scenes.append(
                torch.frombuffer(bytearray(scene.picture.tobytes()), dtype=torch.uint8).view(64, 64, 3)
            )
            coloured.append(any(thing.color for thing in scene.things))
            ask_scene(asked, image, scene, rng)
        return self._batch(torch.tensor(singles), torch.stack(scenes), torch.tensor(coloured), asked, rng)

    def _batch(
        self, singles: Tensor, scenes: Tensor, coloured: Tensor, asked: Asked, rng: random.Random
    ) -> Batch:
        labels = list(dict.fromkeys(label for shown in asked.present.values() for label in shown))
        doubted = sorted(rng.sample(range(len(labels)), min(60, len(labels))))
        said = [*labels, *(f"not {labels[index]}" for index in doubted)]
        said += [text for group in asked.groups for text in group.statements]
        place = {text: index for index, text in enumerate(dict.fromkeys(said))}
        own, absent = self._truth(asked, labels)
        groups = {}
        for kind in KINDS:
            of_kind = [group for group in asked.groups if group.kind == kind]
            if of_kind:
                columns = [[place[text] for text in group.statements] for group in of_kind]
                groups[kind] = (
                    torch.tensor([[group.image] for group in of_kind]),
                    torch.tensor(columns),
                    torch.tensor([group.right for group in of_kind]),
                )
        shown = [(image, self.places[label]) for image, own_ in asked.present.items() for label in own_]
        pairs = torch.tensor(shown).T
        near = torch.zeros(self.size, len(self.places))
        near.index_add_(0, pairs[0], (self.words[pairs[1]] @ self.words.T > 0).float())
        return Batch(
            singles,
            scenes,
            coloured,
            tuple(place),
            self.vocabulary.encode(texts_of([read(text) for text in place])),
            own,
            absent,
            torch.tensor(doubted),
            torch.tensor([place[f"not {labels[index]}"] for index in doubted]),
            groups,
            pairs,
            near > 0,
            torch.tensor([self.places[label] for label in labels]),
        )

    def _truth(self, asked: Asked, labels: Sequence[str]) -> tuple[Tensor, Tensor]:
        has = self.words[[self.places[label] for label in labels]]
        place = {label: index for index, label in enumerate(labels)}
        own = torch.zeros(self.size, len(labels))
        for image, shown in asked.present.items():
            own[image, [place[label] for label in shown]] = 1
        return own.bool(), (own @ has @ has.T) == 0


def _words(texts: Sequence[str], vocabulary: Vocabulary) -> Tensor:
    """(texts, words of the vocabulary): 1 where a text has a word."""
    places = {word: place for place, word in enumerate(vocabulary.words)}
    found = torch.zeros(len(texts), len(places))
    for row, text in enumerate(texts):
        found[row, [places[word] for word in text.split()]] = 1
    return found
