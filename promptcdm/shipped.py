"""What ships with promptcdm, and where it lies: in the wheel beside the code, in a checkout where it is kept.

| name         | what                                                        | in a checkout              |
|--------------|-------------------------------------------------------------|----------------------------|
| `nano`       | the demonstration backbone, a diffusers folder              | promptcdm/shipped/nano     |
| `nano-judge` | the model that answers questions about pictures             | promptcdm/shipped/nano-judge |
| `sealed-judge` | another one, for published figures only                   | promptcdm/shipped/sealed-judge |
| `towers`     | features of 64 px pictures for fidelity and leakage         | promptcdm/shipped/towers   |
| `adapters`   | a store of adapters, of collections that permit it          | adapters                   |
| `emoji`      | picture folders of these collections                        | examples/emoji/slice       |
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from promptcdm.errors import RunFailed

Shipped = Literal["nano", "nano-judge", "sealed-judge", "towers", "adapters", "emoji"]

_PACKAGE = Path(__file__).parent
_IN_CHECKOUT = {"adapters": "adapters", "emoji": "examples/emoji/slice"}


def shipped(name: Shipped) -> Path:
    """Return the folder of a part that ships. Raises RunFailed where the installation lacks it."""
    folder = _PACKAGE / "shipped" / name
    if not folder.is_dir() and name in _IN_CHECKOUT:
        folder = _PACKAGE.parent / _IN_CHECKOUT[name]
    if not folder.is_dir():
        raise RunFailed(f"{name} is missing from this installation of promptcdm; install it again")
    return folder
