"""What a result was made of: the programs' versions, and digests of questions, pictures and judge.

Two results can be compared where these agree, and a result can be made again from them.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from promptcdm import __version__
from promptcdm.questions import Question

_LIBRARIES = ("torch", "transformers", "open_clip_torch", "numpy", "pillow")


@dataclass(frozen=True)
class MadeOf:
    """The inputs of an evaluation."""

    judge_version: str = ""  # weights and prompt
    questions_sha256: str = ""  # of the questions' records as JSON, in the order asked
    prompts: Mapping[str, str] = field(default_factory=dict)  # {id: caption}
    pictures: Mapping[str, Path] = field(default_factory=dict)  # {id: file}
    digests: Mapping[str, str] = field(default_factory=dict)  # {id: sha256 (hex) of the file}

    @classmethod
    def of(
        cls,
        questions: Sequence[Question],
        images: Mapping[str, Path],
        digests: Mapping[str, str],
        judge_version: str,
    ) -> MadeOf:
        """The inputs of an evaluation of these questions."""
        prompts = {question.id: question.caption for question in questions}
        return cls(
            judge_version=judge_version,
            questions_sha256=hashlib.sha256(_records(questions)).hexdigest(),
            prompts=prompts,
            pictures={id: images[id] for id in prompts},
            digests=digests,
        )

    def record(self, folder: Path | None = None) -> dict[str, object]:
        """As a result file in `folder` holds it: paths are relative to it, so that both can move together."""
        return {
            "judge_version": self.judge_version,
            "questions_sha256": self.questions_sha256,
            "prompts": dict(self.prompts),
            "pictures": {
                id: {"file": _relative(path, folder), "sha256": self.digests.get(id)}
                for id, path in self.pictures.items()
            },
            "versions": library_versions(),
        }


def library_versions(libraries: Iterable[str] = _LIBRARIES) -> dict[str, str]:
    """Versions of promptcdm, Python and the libraries that are installed."""
    found = {"promptcdm": __version__, "python": platform.python_version()}
    for name in libraries:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _records(questions: Sequence[Question]) -> bytes:
    return json.dumps([question.record() for question in questions], ensure_ascii=False).encode()


def _relative(path: Path, folder: Path | None) -> str:
    if folder is None:
        return path.name
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # Windows: on another drive
        return path.as_posix()
