"""Memorization and leakage of sources: generated pictures beside training pictures, and adapters beside held-out ones.

Either part, or both:

    neighbours   needs generated pictures, the sources' training pictures and features
    membership   needs a store of adapters, their backbone, training pictures and held-out ones with captions
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from promptcdm.backbone import Backbone
from promptcdm.errors import BadInput
from promptcdm.feature_pair import Rows
from promptcdm.features import Features, feature_facts, load_features, read_features
from promptcdm.judge import torch_device
from promptcdm.leakage_report import LeakageReport, MembershipFacts, NeighbourFacts
from promptcdm.made_of import library_versions
from promptcdm.made_pictures import made_pictures, picture_sources
from promptcdm.membership import (
    Membership,
    check_held_out,
    drawn,
    members_of,
    membership,
    overfitted,
    probe_of,
)
from promptcdm.picture_folder import PictureFolder
from promptcdm.settings import LeakageSettings
from promptcdm.source import Source
from promptcdm.store import AdapterStore
from promptcdm.training_neighbours import GeneratedRows, training_neighbours

DEFAULT_FEATURES = "instance-tower"
_LIBRARIES = ("numpy", "pillow", "torch", "diffusers", "transformers", "peft")


def leakage(
    sources: Path,
    *,
    generated: Path | None = None,
    allowed: Sequence[str] | None = None,
    features: Features | str = DEFAULT_FEATURES,
    held_out: Path | None = None,
    store: AdapterStore | None = None,
    backbone: Backbone | None = None,
    device: str = "auto",
    out: Path | None = None,
    settings: LeakageSettings | None = None,
) -> LeakageReport:
    """Measure what can be measured with what is given, and write the record to `out`.

    `sources` and `held_out` hold a folder of pictures for each source, by its name. `generated` is measured against the
    training pictures; `allowed` says what it was made from where there are no records. `store` is measured with
    `backbone` and `held_out`, each adapter that has both folders.

    Raises BadInput where neither is given, and for pictures that are missing, too few or trained on.
    """
    chosen = LeakageSettings() if settings is None else settings
    check_settings(chosen)
    if generated is None and store is None:
        raise BadInput("nothing to measure: give generated pictures, or a store of adapters, or both")
    if store is not None and (held_out is None or backbone is None):
        raise BadInput(
            "adapters are measured on held-out pictures through a backbone; give both with the store"
        )
    neighbours = None
    if generated is not None:
        neighbours = _neighbours(sources, generated, allowed, features, held_out, device, chosen)
    members = None
    if store is not None and held_out is not None and backbone is not None:
        members = _memberships(sources, held_out, store, backbone, chosen)
    report = LeakageReport(neighbours, members, chosen, library_versions(_LIBRARIES))
    if out is not None:
        report.save(out)
    return report


def check_settings(settings: LeakageSettings) -> None:
    """Raise BadInput for a number out of range."""
    for name in ("noise_levels", "draws", "batch_size"):
        if getattr(settings, name) < 1:
            raise BadInput(f"{name} is {getattr(settings, name)}; give 1 or more")
    for name in ("max_pictures", "control_pictures"):
        if getattr(settings, name) < 20:
            raise BadInput(f"{name} is {getattr(settings, name)}; give 20 or more")
    if settings.control_steps < 0 or settings.seed < 0:
        raise BadInput(
            f"control_steps is {settings.control_steps} and seed {settings.seed}; give 0 or more of both"
        )
    if not -1 < settings.threshold < 1:
        raise BadInput(
            f"threshold is {settings.threshold}; give a cosine below 1, or 0 for the background's own"
        )


def _neighbours(
    sources: Path,
    generated: Path,
    allowed: Sequence[str] | None,
    features: Features | str,
    held_out: Path | None,
    device: str,
    settings: LeakageSettings,
) -> NeighbourFacts:
    training = picture_sources(sources)
    real = _held_out_pictures(held_out, training)
    folder = PictureFolder.open(generated)
    made = made_pictures(folder, allowed)
    model = load_features(features, torch_device(device)) if isinstance(features, str) else features

    def read(pictures: PictureFolder) -> Rows:
        return read_features(model, pictures, range(len(pictures)), settings.batch_size)

    rows = read_features(model, folder, [each.index for each in made], settings.batch_size)
    found = training_neighbours(
        {name: read(pictures) for name, pictures in training.items()},
        GeneratedRows(rows, tuple(each.allowed for each in made), tuple(each.prompt for each in made)),
        {name: read(pictures) for name, pictures in real.items()},
        settings.threshold,
    )
    return NeighbourFacts(
        found,
        feature_facts(model, rows.shape[1]),
        {name: pictures.digest for name, pictures in training.items()},
        folder.digest,
        len(made),
        len(folder) - len(made),
        tuple(
            (made[pair.generated].file, pair.source, training[pair.source].files[pair.training])
            for pair in found.closest
        ),
    )


def _held_out_pictures(
    held_out: Path | None, training: Mapping[str, PictureFolder]
) -> dict[str, PictureFolder]:
    """Held-out pictures of those sources that have some."""
    if held_out is None:
        return {}
    return {name: pictures for name, pictures in picture_sources(held_out).items() if name in training}


def _memberships(
    sources: Path, held_out: Path, store: AdapterStore, backbone: Backbone, settings: LeakageSettings
) -> MembershipFacts:
    names = [name for name in store.sources() if (sources / name).is_dir() and (held_out / name).is_dir()]
    if not names:
        raise BadInput(
            f"no adapter of {store.root} has pictures in {sources} and in {held_out}; folders bear the sources' names"
        )
    found: list[Membership] = []
    control = None
    for name in names:
        adapter = store.load(name)
        backbone.check_made_for(adapter.record)
        members = members_of(adapter, Source.open(sources / name, name))
        others = Source.open(held_out / name, name)
        check_held_out(others, adapter, members)
        others_probe = probe_of(drawn(others, settings.max_pictures, settings.seed), backbone)
        members_probe = probe_of(drawn(members, settings.max_pictures, settings.seed), backbone)
        found.append(membership(adapter, members_probe, others_probe, backbone, settings))
        if control is None and settings.control_steps:
            told, few = overfitted(members, backbone, settings)
            control = membership(told, probe_of(few, backbone), others_probe, backbone, settings)
    left_out = tuple(name for name in store.sources() if name not in names)
    return MembershipFacts(tuple(found), control, left_out, backbone.digest)
