"""A source trained in slices: each slice as a source of its own, alone, and what stands already is not trained again.

A slice's adapter is what `train_adapter` returns for its pictures: a function of the backbone, these pictures, the
settings, the versions and the device. The other slices are no argument of it. So a source that lost or gained pictures
has, slice by slice, the bytes that training all of it anew would give.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

from promptcdm.adapter import Adapter, joined
from promptcdm.adapter_record import AdapterRecord
from promptcdm.backbone import Backbone
from promptcdm.device_class import device_class
from promptcdm.encoding_cache import EncodingCache
from promptcdm.errors import BadInput
from promptcdm.onlooker import Onlooker
from promptcdm.processes import ALONE, Processes
from promptcdm.settings import TrainSettings, same_settings
from promptcdm.slices import slices_of
from promptcdm.source import Source
from promptcdm.train import OnStep, train_adapter

Keep = Callable[[Adapter, Source, Backbone, TrainSettings], bool]


def same_training(record: AdapterRecord, source: Source, backbone: Backbone, settings: TrainSettings) -> bool:
    """Whether an adapter came from these pictures, captions and trigger, this backbone and these settings."""
    return (
        record.source_digest == source.manifest().merkle_root
        and record.backbone.digest == backbone.digest
        and record.trigger == (settings.trigger or source.trigger)
        and same_settings(record.settings, settings)
    )


def is_result_of(adapter: Adapter, source: Source, backbone: Backbone, settings: TrainSettings) -> bool:
    """Whether training `source` here and now is known to give this very adapter, record and all."""
    record = adapter.record
    return (
        same_training(record, source, backbone, settings)
        and record.settings == asdict(settings)
        and record.versions == {name: version(name) for name in record.versions}
        and record.device == device_class(backbone.device, backbone.dtype, settings.mixed_precision)
        and (record.source, record.license, record.author) == (source.name, source.license, source.author)
        and (record.origin, record.attribution) == (source.origin, source.attribution)
    )


def train_source(
    source: Source,
    backbone: Backbone,
    settings: TrainSettings = TrainSettings(),
    *,
    checkpoint: Path | None = None,
    on_step: OnStep | None = None,
    onlooker: Onlooker | None = None,
    cache: EncodingCache | None = None,
    processes: Processes = ALONE,
    known: Sequence[Adapter] = (),
    keep: Keep = is_result_of,
) -> Adapter:
    """Train `source` whole, or in `settings.slices` slices with these settings each.

    Of `known`, slices of this source, those are kept instead of trained that are what `keep` says. `on_step` and
    `onlooker` count the steps of all slices; the adapter that the onlooker is handed is the slice's. Raises as
    `train_adapter` does, and BadInput for fewer slices than 1.
    """
    if settings.slices == 1:
        return train_adapter(
            source,
            backbone,
            settings,
            checkpoint=checkpoint,
            on_step=on_step,
            onlooker=onlooker,
            cache=cache,
            processes=processes,
        )
    if processes.count > 1:
        raise BadInput(
            f"slices is {settings.slices}; {processes.count} processes train one whole source together"
        )
    parts = slices_of(source, settings.slices)
    own = replace(settings, slices=1)
    trained = []
    for n, part in enumerate(parts.values()):
        kept = next((adapter for adapter in known if keep(adapter, part, backbone, own)), None)
        if kept is None:
            place = checkpoint / checkpoint_name(part) if checkpoint is not None else None
            step = _shifted(on_step, n * own.steps) if on_step else None
            looks = onlooker.after(n * own.steps) if onlooker else None
            kept = train_adapter(
                part, backbone, own, checkpoint=place, on_step=step, onlooker=looks, cache=cache
            )
        trained.append(kept)
    return joined(trained, settings.slices)


def steps_of(source: Source, settings: TrainSettings) -> int:
    """Steps of a whole training: those of every slice; none where nothing is learned."""
    if settings.kind == "none":
        return 0
    return settings.steps * (len(slices_of(source, settings.slices)) if settings.slices > 1 else 1)


def checkpoint_name(part: Source) -> str:
    """Where a slice's checkpoint lies: by its content, so that one of other pictures is never gone on from."""
    return f"slice-{part.manifest().merkle_root[:16]}"


def _shifted(on_step: OnStep, by: int) -> OnStep:
    return lambda step, loss: on_step(by + step, loss)
