"""CLIPScore (Hessel et al. 2021, arXiv 2104.08718, equation 1), beside what other captions would get.

    CLIPScore(c, v) = w max(cos(E_text("A photo depicts " + c), E_image(v)), 0),    w = 2.5

The published figure takes OpenAI's ViT-B/32, which open_clip calls ViT-B-32-quickgelu; each figure names its model.
The judge that sees no picture is the same score with the captions of others, the mean over all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image

from promptcdm.asking import Failure
from promptcdm.errors import BadQuestions, RunFailed
from promptcdm.intervals import cluster_interval
from promptcdm.made_of import MadeOf
from promptcdm.open_clip_model import OpenClip
from promptcdm.picture import BadPicture, decode_picture
from promptcdm.questions import Text
from promptcdm.tensorfile import write_json

WEIGHT = 2.5
PREFIX = "A photo depicts "
ANOTHER = "another caption"


@dataclass(frozen=True)
class ClipReport:
    """CLIPScore of each picture, and of all of them."""

    name: str  # CLIPScore(model)
    value: float
    interval: tuple[float, float]  # 95 %, by bootstrap over prompts
    another: float | None  # with the captions of others; None where all captions are the same
    prefers_own: (
        float | None
    )  # share of other captions that score lower than the picture's own; 0.5 by chance
    by_caption: Mapping[str, float]  # {id: score}
    asked: int
    failures: tuple[Failure, ...]  # pictures that could not be read; they are in no score
    seed: int
    made_of: MadeOf

    def table(self) -> list[tuple[str, ...]]:
        """Rows of text."""
        low, high = self.interval
        blind = "" if self.another is None else f"{self.another:.3f}"
        prefers = "" if self.prefers_own is None else f"{self.prefers_own:.3f}"
        header = ("", "score", "95 %", ANOTHER, "above others", "pictures")
        figures = f"{self.value:.3f}", f"{low:.3f} to {high:.3f}", blind, prefers
        return [header, (self.name, *figures, str(len(self.by_caption)))]

    def save(self, out: Path) -> Path:
        """Write the JSON file; returns its path."""
        score = {
            "value": self.value,
            "interval_95": list(self.interval),
            "coverage": len(self.by_caption) / self.asked,
            "blind": {} if self.another is None else {ANOTHER: self.another},
            "corrected": {},
            "by_caption": dict(self.by_caption),
            "prefers_own": self.prefers_own,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            out,
            {
                **self.made_of.record(out.parent),
                "judge": self.name,
                "seed": self.seed,
                "scores": {self.name: score},
                "failures": [asdict(failure) for failure in self.failures],
            },
        )
        return out


def clipscore(
    texts: Sequence[Text], images: Mapping[str, Path], model: OpenClip, *, seed: int = 0
) -> ClipReport:
    """Score the picture of each text's id.

    A picture that cannot be read is named and left out. Raises BadQuestions where the map lacks a picture, RunFailed
    where none could be read.
    """
    unnamed = [text.id for text in texts if text.id not in images]
    if unnamed or not texts:
        raise BadQuestions(
            f"not in the image map: {', '.join(unnamed)}; every id of the texts needs a picture"
        )
    pictures, failures, digests = _read(texts, images)
    if not pictures:
        raise RunFailed(f"none of {len(texts)} pictures could be read; {failures[0].reason}")
    scored = [text for text in texts if text.id in pictures]
    captions = list(dict.fromkeys(text.caption for text in scored))
    own = torch.tensor([captions.index(text.caption) for text in scored])
    seen = model.pictures([pictures[text.id] for text in scored])
    said = model.texts([PREFIX + caption for caption in captions])
    every = WEIGHT * (seen @ said.T).clamp(min=0).double()  # (pictures, captions)
    scores = every.gather(1, own[:, None])[:, 0]
    another, prefers_own = _against_others(every, scores)
    values = [float(score) for score in scores]
    return ClipReport(
        name=f"CLIPScore({model.name})",
        value=float(scores.mean()),
        interval=cluster_interval(values, [text.caption for text in scored], seed=seed),
        another=another,
        prefers_own=prefers_own,
        by_caption={text.id: value for text, value in zip(scored, values, strict=True)},
        asked=len(texts),
        failures=failures,
        seed=seed,
        made_of=MadeOf(
            judge_version=f"weights {model.weights_sha256[:16]}",
            prompts={text.id: text.caption for text in texts},
            pictures={text.id: images[text.id] for text in texts},
            digests=digests,
        ),
    )


def _read(
    texts: Sequence[Text], images: Mapping[str, Path]
) -> tuple[dict[str, Image.Image], tuple[Failure, ...], dict[str, str]]:
    """RGB pictures, why some cannot be read, and sha256 of each file."""
    pictures, failures, digests = {}, [], {}
    for text in texts:
        try:
            data = images[text.id].read_bytes()
            digests[text.id] = hashlib.sha256(data).hexdigest()
            pictures[text.id] = decode_picture(data)
        except (BadPicture, OSError) as error:
            failures.append(Failure(text.id, PREFIX + text.caption, f"{images[text.id]}: {error}"))
    return pictures, tuple(failures), digests


def _against_others(every: torch.Tensor, own: torch.Tensor) -> tuple[float | None, float | None]:
    """The mean over the other captions, and the share of them that score lower, ties as half."""
    others = every.shape[1] - 1
    if others < 1:
        return None, None
    mean = (every.sum(1) - own) / others
    lower = (every < own[:, None]).sum(1)
    ties = (every == own[:, None]).sum(1) - 1  # the own caption is one of them
    return float(mean.mean()), float(((lower + ties / 2) / others).mean())
