"""`nano-judge`: a small open_clip model that answers multiple-choice questions by likelihood.

    P(choice | image, question) = softmax over choices of  s <f(image), g(statement(question, choice))>   (1)

f and g are the towers of an `open_clip.model.CLIP` with its own vocabulary of words, s its learned scale. A
folder holds `config.json` (the towers' settings and the vocabulary) and `model.safetensors` (fp16).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from promptcdm.answer import Answer, Asked, most_likely
from promptcdm.errors import BadInput
from promptcdm.statements import statement
from promptcdm.tensorfile import read_tensors, write_json, write_tensors

_PAD, _UNKNOWN = 0, 1
_IMAGES_AT_ONCE = 64


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
        texts = {text: place for place, text in enumerate(dict.fromkeys(t for row in asked for t in row))}
        with torch.inference_mode():
            pictures = self._encode_images(list(images.values()))
            said = self._model.encode_text(
                self._config.vocabulary.encode(list(texts)).to(self._device), normalize=True
            )
            scores = self._model.logit_scale.exp() * pictures @ said.T
        found = []
        for (image, _, _), row in zip(batch, asked, strict=True):
            own = scores[places[id(image)], [texts[text] for text in row]]
            found.append(tuple(float(p) for p in own.softmax(0)))
        return found

    def _encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = torch.stack([image_tensor(image, self._config.image_size) for image in images])
        parts = [
            self._model.encode_image(part.to(self._device), normalize=True)
            for part in torch.split(pixels, _IMAGES_AT_ONCE)
        ]
        return torch.cat(parts)


def image_tensor(image: Image.Image, size: int) -> Tensor:
    """(3, size, size) in -1..1; white fills what is missing to a square, as it is the training background."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    side = max(rgb.size)
    if rgb.size != (side, side):
        square = Image.new("RGB", (side, side), "white")
        square.paste(rgb, ((side - rgb.width) // 2, (side - rgb.height) // 2))
        rgb = square
    if side != size:
        rgb = rgb.resize((size, size), Image.Resampling.BICUBIC)
    pixels: Tensor = pil_to_tensor(rgb)
    return pixels.float() / 127.5 - 1


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
