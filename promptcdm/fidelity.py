"""Fidelity of a folder of generated pictures to a folder of real ones: figures, floor, excess, intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from promptcdm.errors import BadInput
from promptcdm.features import Features, feature_facts, load_features, read_features
from promptcdm.fidelity_figures import Figure, check_counts, compare_features, floor_size, guidance
from promptcdm.judge import torch_device
from promptcdm.made_of import library_versions
from promptcdm.picture_folder import PictureFolder
from promptcdm.settings import FidelitySettings
from promptcdm.tensorfile import write_json
from promptcdm.tower import Tower

_LIBRARIES = (
    "numpy",
    "pillow",
    "torch",
    "torchvision",
    "transformers",
    "timm",
    "open_clip_torch",
)
_KID_SHOWN = 1000  # as papers print it


@dataclass(frozen=True)
class FidelityReport:
    """The figures by their keys, and everything that they depend on."""

    features: Mapping[str, object]  # name, width d, and of a tower its weights and resizing
    figures: Mapping[str, Figure]
    labels: Mapping[str, str]  # of the figures; "FID" only for FID's Inception
    pictures: int  # N
    floor_pictures: int  # n
    folders: Mapping[str, Mapping[str, object]]  # "real", "generated": pictures in it, used, and digests
    in_both: int  # generated files whose bytes are a real file's
    settings: FidelitySettings
    guidance: tuple[str, ...]

    def table(self) -> list[tuple[str, ...]]:
        """Rows of text: a header, then a row for each figure. KID is shown times 1000."""
        n, n_floor = self.pictures, self.floor_pictures
        header = (
            "",
            f"N = {n}",
            "95 %",
            f"real to real, n = {n_floor}",
            f"generated, n = {n_floor}",
            "excess",
        )
        rows: list[tuple[str, ...]] = [header]
        for key, figure in self.figures.items():
            scale = _KID_SHOWN if key == "kid" else 1
            numbers = (figure.floor, figure.at_floor_size, figure.excess)
            low, high = (_shown(end * scale) for end in figure.interval)
            label = self.labels[key] + (f" x {_KID_SHOWN}" if key == "kid" else "")
            rows.append(
                (
                    label,
                    _shown(figure.value * scale),
                    f"{low} to {high}",
                    *(_shown(number * scale) for number in numbers),
                )
            )
        return rows

    def record(self) -> dict[str, object]:
        """All of it as JSON: figures unscaled, versions, digests of both folders, N, seed, guidance."""
        figures = {
            key: {
                "label": self.labels[key],
                "value": figure.value,
                "interval_95": list(figure.interval),
                "real_to_real": figure.floor,
                "real_to_real_range": list(figure.floor_range),
                "generated_at_its_size": figure.at_floor_size,
                "excess": figure.excess,
            }
            for key, figure in self.figures.items()
        }
        return {
            "features": dict(self.features),
            "figures": figures,
            "pictures": self.pictures,
            "real_to_real_pictures": self.floor_pictures,
            "interval": "delete-group jackknife, 20 groups",
            "folders": {name: dict(facts) for name, facts in self.folders.items()},
            "generated_files_that_are_real_files": self.in_both,
            "settings": asdict(self.settings),
            "guidance": list(self.guidance),
            "versions": library_versions(_LIBRARIES),
        }

    def save(self, out: Path) -> Path:
        """Write the record to a JSON file."""
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, self.record())
        return out


def fidelity(
    real: Path,
    generated: Path,
    features: Features | str,
    out: Path | None = None,
    *,
    settings: FidelitySettings | None = None,
) -> FidelityReport:
    """Compare the pictures of two folders in the features of a model, and write the record to `out`.

    The grid.png that `generate` writes beside its pictures is none of them. `features` is a name that
    `load_features` takes, or any object of that protocol. Raises BadInput, before a
    model is loaded, for a folder that is missing, too few pictures, and unequal numbers without `subsample`;
    and for a picture that cannot be read.
    """
    chosen = FidelitySettings() if settings is None else settings
    folders = PictureFolder.open(Path(real)), PictureFolder.open(Path(generated)).without_grids()
    used_real, used_generated = used_pictures(len(folders[0]), len(folders[1]), chosen)
    n, n_floor = len(used_generated), floor_size(len(used_generated), len(used_real))
    if chosen.batch_size < 1:
        raise BadInput(f"batch_size is {chosen.batch_size}; give 1 or more")
    device = torch_device(chosen.device)
    model = load_features(features, device) if isinstance(features, str) else features
    x = read_features(model, folders[0], used_real.tolist(), chosen.batch_size)
    y = read_features(model, folders[1], used_generated.tolist(), chosen.batch_size)
    report = FidelityReport(
        features=feature_facts(model, x.shape[1]),
        figures=compare_features(x, y, neighbours=chosen.neighbours, splits=chosen.splits, seed=chosen.seed),
        labels=_labels(model),
        pictures=n,
        floor_pictures=n_floor,
        folders={
            "real": _folder_facts(folders[0], len(used_real)),
            "generated": _folder_facts(folders[1], n),
        },
        in_both=sum(digest in set(folders[0].sha256) for digest in folders[1].sha256),
        settings=chosen,
        guidance=tuple(guidance(n, x.shape[1], n_floor)),
    )
    if out is not None:
        report.save(out)
    return report


def used_pictures(
    real: int, generated: int, settings: FidelitySettings
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Which pictures of each folder are read, in order: N generated, and N real with up to N more for the floor.

    Raises BadInput where they are unequal and `subsample` is 0, or too few.
    """
    if settings.subsample == 0 and real != generated:
        raise BadInput(
            f"{real} real and {generated} generated pictures; give equally many, or draw N of each with "
            f"--subsample N, {min(real, generated)} at most"
        )
    n = settings.subsample or generated
    if n < 0 or n > min(real, generated):
        raise BadInput(f"subsample is {n}; {real} real and {generated} generated pictures are there")
    pool = min(real, 2 * n)
    check_counts(n, pool, settings.neighbours, settings.splits)
    draw = np.random.default_rng([settings.seed, 0])
    if settings.subsample == 0:
        return np.arange(real), np.arange(generated)
    return draw.permutation(real)[:pool], draw.permutation(generated)[:n]


def _labels(model: Features) -> dict[str, str]:
    """Published names only for the network that they were published with."""
    published = model.published if isinstance(model, Tower) else ""
    names = {
        "kid": "KID" if published == "FID" else f"KID({model.name})",
        "fd": "FID" if published == "FID" else f"FD({model.name})",
        "cmmd": "CMMD" if published == "CMMD" else f"CMMD({model.name})",
    }
    return names | {name: name for name in ("precision", "recall", "density", "coverage")}


def _folder_facts(folder: PictureFolder, used: int) -> dict[str, object]:
    return {"pictures": len(folder), "used": used, "sha256": folder.digest}


def _shown(number: float) -> str:
    return f"{number:.4g}"
