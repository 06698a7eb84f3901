"""Many sources in a row, each alone, on one backbone that stays loaded.

One that fails does not stop the others. Given again, the same call goes on: what stands in the store and came from the
same pictures, settings and backbone is kept, and a training that was interrupted goes on from its checkpoint.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from promptcdm.adapter import Adapter
from promptcdm.backbone import Backbone
from promptcdm.encoding_cache import EncodingCache
from promptcdm.errors import AdapterMismatch, BadInput, PromptCDMError, UnknownSource
from promptcdm.onlooker import Onlooker
from promptcdm.processes import ALONE, Processes
from promptcdm.settings import TrainSettings
from promptcdm.source import Source
from promptcdm.store import AdapterStore
from promptcdm.train import OnStep
from promptcdm.train_slices import same_training, steps_of, train_source

Watch = Callable[[str, int, int], AbstractContextManager[OnStep]]  # source, steps, pictures a step
OnOpen = Callable[[Source], None]
Look = Callable[[Source], AbstractContextManager[Onlooker | None]]


@dataclass(frozen=True)
class Outcome:
    """What became of one source."""

    source: str
    state: Literal["trained", "kept", "failed"]
    items: int  # pictures; 0 where the folder could not be read
    seconds: float
    what: str  # the adapter's sha256, or why it failed


@contextmanager
def _unwatched(source: str, steps: int, batch_size: int) -> Iterator[OnStep]:
    yield lambda step, loss: None


@contextmanager
def _unseen(source: Source) -> Iterator[None]:
    yield None


def train_all(
    folder: Path,
    backbone: Backbone,
    settings: TrainSettings = TrainSettings(),
    *,
    store: AdapterStore,
    replace: bool = False,
    watch: Watch = _unwatched,
    look: Look = _unseen,
    cache: EncodingCache | None = None,
    on_open: OnOpen = lambda source: None,
) -> list[Outcome]:
    """Train every folder in `folder` as a source of its own name, in the order of names.

    `on_open` is given each source before it is trained. `watch(source, steps, pictures a step)` is entered around each
    and yields its `on_step`, `look(source)` its onlooker. Raises BadInput where there is no folder to train; whatever
    goes wrong with one source is its outcome.
    """
    return [
        _outcome(place, backbone, settings, store, replace, watch, look, cache, on_open)
        for place in source_folders(folder)
    ]


def train_into(
    store: AdapterStore,
    source: Source,
    backbone: Backbone,
    settings: TrainSettings,
    *,
    replace: bool = False,
    watch: Watch = _unwatched,
    look: Look = _unseen,
    cache: EncodingCache | None = None,
    processes: Processes = ALONE,
) -> Adapter:
    """Train one source, going on from its checkpoint where there is one, and put the adapter into the store.

    Slices that stand in the store and would come out the same are not trained again. What is in the cache stays there
    until the adapter is in the store. Of several processes the main one puts it there.
    """
    store.check_writable()
    partial = store.checkpoint_folder(source.name)
    known = _slices(store, source.name) if settings.slices > 1 else ()
    bar = watch(source.name, steps_of(source, settings), settings.rows)
    with look(source) as onlooker, bar as on_step:
        adapter = train_source(
            source,
            backbone,
            settings,
            checkpoint=partial,
            on_step=on_step,
            onlooker=onlooker,
            cache=cache,
            processes=processes,
            known=known,
        )
    if not processes.main:
        return adapter
    store.add(adapter, replace=replace)
    shutil.rmtree(partial, ignore_errors=True)
    if cache:
        cache.finish()
    return adapter


def _slices(store: AdapterStore, name: str) -> tuple[Adapter, ...]:
    """The slices of a source that stand in the store; none where it is not there, is whole or is not sound."""
    try:
        return store.load(name).slices
    except (UnknownSource, AdapterMismatch):
        return ()


def source_folders(folder: Path) -> list[Path]:
    """The folders in `folder`, by name; hidden ones are left out. Raises BadInput where there is none."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; give one that holds a folder for each source")
    places = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not places:
        raise BadInput(f"{folder} holds no folder; give one that holds a folder for each source")
    return places


def _outcome(
    place: Path,
    backbone: Backbone,
    settings: TrainSettings,
    store: AdapterStore,
    replace: bool,
    watch: Watch,
    look: Look,
    cache: EncodingCache | None,
    on_open: OnOpen,
) -> Outcome:
    start, items = time.monotonic(), 0
    try:
        source = Source.open(place)
        items = len(source)
        kept = _standing(source, backbone, settings, store, replace)
        if kept:
            return Outcome(source.name, "kept", items, time.monotonic() - start, kept)
        on_open(source)
        adapter = train_into(
            store, source, backbone, settings, replace=replace, watch=watch, look=look, cache=cache
        )
    except (PromptCDMError, OSError, RuntimeError) as error:  # out of memory is a RuntimeError of torch's
        reason = " ".join(str(error).split())
        return Outcome(place.name, "failed", items, time.monotonic() - start, reason)
    return Outcome(source.name, "trained", items, time.monotonic() - start, adapter.sha256)


def _standing(
    source: Source, backbone: Backbone, settings: TrainSettings, store: AdapterStore, replace: bool
) -> str:
    """The digest of the adapter that this training would give again; "" where it has to be trained.

    Raises BadInput where another adapter has the name, unless it may be replaced.
    """
    if source.name not in store.sources():
        return ""
    record = store.record(source.name)
    if same_training(record, source, backbone, settings):
        return record.sha256
    if not replace:
        raise BadInput(
            f"{store.root / source.name} is of other pictures, settings, trigger or another backbone; "
            "--replace trains it again"
        )
    return ""
