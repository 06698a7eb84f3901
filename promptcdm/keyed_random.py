"""Counter-based randomness: what is drawn is a function of a key, and of nothing that was drawn before."""

from __future__ import annotations

import hashlib

import torch


def keyed_generator(key: str) -> torch.Generator:
    """A CPU generator that starts from the digest of `key`."""
    digest = hashlib.sha256(key.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
