"""Which weights a model of transformers has: the commit of the hub, or a digest of a folder's files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

_SUFFIXES = {".json", ".safetensors", ".txt"}


def revision(model: str, config: Any) -> str:
    """The commit of a model of the hub, else a digest of the folder's files; `config` is the model's own."""
    commit = getattr(config, "_commit_hash", None)
    if commit:
        return f"commit {commit}"
    whole = hashlib.sha256()
    for path in sorted(path for path in Path(model).rglob("*") if path.suffix in _SUFFIXES):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                whole.update(block)
    return f"files {whole.hexdigest()[:16]}"
