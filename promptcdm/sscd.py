"""SSCD: descriptors made to find copies (Pizzi et al. 2022, arXiv 2202.10261), from its authors' TorchScript file.

Pictures are squeezed to 320 x 320, as its authors advise for batches, with ImageNet's scale; descriptors have length
one. Papers on memorization call a cosine above 0.5 a replication (Somepalli et al. 2023); of the model
`sscd_disc_mixup`, pairs above 0.75 are copies with a precision of 90 %, by its authors.

A TorchScript file holds code that runs when it is read: open one from its authors only.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from promptcdm.errors import BadInput
from promptcdm.tower import Tower, file_digest

SIZE = 320
REPLICATION = 0.5
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
_WANTED = "SSCD's TorchScript file, such as sscd_disc_mixup.torchscript.pt"


def load_sscd(path: Path, device: str = "cpu") -> Tower:
    """Load a TorchScript file. Raises BadInput where it is missing or is none."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file; give {_WANTED}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch says that TorchScript will go one day
            warnings.simplefilter("ignore", DeprecationWarning)
            network: Any = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise BadInput(f"{path}: is no TorchScript file; give {_WANTED}") from error
    return Tower(
        name=f"sscd:{path.name.removesuffix('.pt').removesuffix('.torchscript')}",
        network=network.eval(),
        size=SIZE,
        mean=_MEAN,
        std=_STD,
        device=device,
        weights_sha256=file_digest(path),
    )
