"""Encoded pictures and captions on disk, on request, so that the next training with them encodes nothing.

    key = sha256(backbone digest, device and type of numbers, versions, kind, what was encoded together)

Of a picture its pixels' digest, its size in training and whether it is mirrored; of a caption its text. What was
encoded together is one file: on some devices the last bits of a picture depend on the others of its batch, and so a
training from the cache has the bytes of one without.

A file that does not hold what was written is an error which names it. It is not encoded again in silence: latents are
what the adapter is trained on, and a disk that changes them is to be known of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from promptcdm.backbone import Backbone
from promptcdm.device_class import device_class
from promptcdm.errors import AdapterMismatch, BadInput, RunFailed
from promptcdm.tensorfile import read_tensors, tensor_digest, write_tensors

_LIBRARIES = ("torch", "diffusers", "transformers")


@dataclass
class EncodingCache:
    """A folder of encodings. Latents can be decoded to the pictures: keep it as the pictures are kept."""

    folder: Path
    keep: bool = False
    used: set[Path] = field(default_factory=set, repr=False)  # by trainings that have not ended

    def get(
        self, backbone: Backbone, kind: str, what: Sequence[object], make: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """What `make` returns, from the file if there is one; else it is made, and written.

        Raises BadInput for a file that does not hold what was written, RunFailed where none can be written.
        """
        key = _key(backbone, kind, what)
        path = self.folder / f"{kind}-{key[:32]}.safetensors"
        self.used.add(path)
        if path.exists():
            return _read(path, key)
        tensors = make()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_tensors(path, tensors, {"key": key, "sha256": tensor_digest(tensors)})
        except OSError as error:
            raise RunFailed(f"{path}: the cache cannot be written: {error.strerror}") from error
        return tensors

    def finish(self) -> None:
        """A training has ended: unless they are kept, delete the files that it used, and an empty folder."""
        if not self.keep:
            for path in self.used:
                path.unlink(missing_ok=True)
            if self.folder.is_dir() and not any(self.folder.iterdir()):
                self.folder.rmdir()
        self.used.clear()


def _key(backbone: Backbone, kind: str, what: Sequence[object]) -> str:
    versions = [f"{name} {version(name)}" for name in _LIBRARIES]
    place = device_class(backbone.device, backbone.pipe.vae.dtype)
    return hashlib.sha256(json.dumps([backbone.digest, place, versions, kind, *what]).encode()).hexdigest()


def _read(path: Path, key: str) -> dict[str, Tensor]:
    try:
        tensors, metadata = read_tensors(path)
        sound = metadata == {"key": key, "sha256": tensor_digest(tensors)}
    except AdapterMismatch as error:
        raise BadInput(f"{error}; delete it, and what it held is encoded again") from error
    if not sound:
        raise BadInput(
            f"{path} does not hold what was written there; delete it, and what it held is encoded again"
        )
    return tensors
