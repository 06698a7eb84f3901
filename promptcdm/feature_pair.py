"""Two sets of features that may be compared: finite numbers, one width, equally many rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from promptcdm.errors import BadInput

Rows = NDArray[np.float64]  # (N, d), one picture a row


def feature_pair(real: ArrayLike, generated: ArrayLike) -> tuple[Rows, Rows]:
    """Both sets as float64 (N, d).

    Raises BadInput where one is no table of finite numbers, where the widths differ, where N is below 2, and
    where the numbers of rows differ: most figures of fidelity depend on N, so that sets of two sizes would be
    compared by their sizes.
    """
    x, y = _rows(real, "real"), _rows(generated, "generated")
    if x.shape[1] != y.shape[1]:
        raise BadInput(
            f"the real features are {x.shape[1]} wide and the generated ones {y.shape[1]}; "
            "take both from one model"
        )
    if len(x) != len(y):
        raise BadInput(
            f"{len(x)} real and {len(y)} generated pictures; give equally many, or draw N of each by a seed"
        )
    return x, y


def _rows(features: ArrayLike, name: str) -> Rows:
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2 or len(rows) < 2 or rows.shape[1] < 1:
        raise BadInput(f"the {name} features have shape {rows.shape}; give (N, d) with N of 2 or more")
    if not np.isfinite(rows).all():
        raise BadInput(f"the {name} features are not all finite; look at the pictures and the model")
    return rows
