"""One source trains its adapter, alone, on the frozen backbone.

    min over the adapter of  E_{x_0, t, noise} weight(t) || prediction(x_t, t, c) - target ||^2

`train_adapter` is handed one source and a backbone: no store and no other source, so it cannot see one. What it returns
is a function of the backbone's digest, the source's digest, the settings and the library versions: every random number
is keyed by (seed, source digest, step), so neither resuming nor anything else in the process changes a bit on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from promptcdm import lora
from promptcdm.activations import Activations, measure_activations
from promptcdm.adapter import Adapter, AdapterRecord, BackboneRecord, Statistics, adapter_digest
from promptcdm.backbone import Backbone
from promptcdm.batch import Batch, OwnWords, draw_batch, weighted_errors
from promptcdm.checkpoint import load_checkpoint, save_checkpoint
from promptcdm.device_class import deterministic_kernels, device_class
from promptcdm.encoded_source import EncodedSource, encode_source, trained_statistics
from promptcdm.encoding_cache import EncodingCache
from promptcdm.errors import BadInput, RunFailed
from promptcdm.held_out import best_so_far, held_out_batches, held_out_loss
from promptcdm.keyed_random import keyed_generator
from promptcdm.learned import (
    LORA_NAME,
    Parameters,
    checkpointing,
    new_optimizer,
    own_words,
    read_out,
    trainable,
)
from promptcdm.learning_rate import rate_share
from promptcdm.lora import folded
from promptcdm.onlooker import Onlooker
from promptcdm.processes import ALONE, Processes
from promptcdm.settings import (
    Checkpointing,
    Kind,
    Precision,
    RateSchedule,
    Targets,
    TrainSettings,
    Unconditional,
    settings_of_result,
)
from promptcdm.source import Source
from promptcdm.weight_average import copies, put, standing_in, update_average

OnStep = Callable[[int, float], None]


def train_adapter(
    source: Source,
    backbone: Backbone,
    settings: TrainSettings = TrainSettings(),
    *,
    checkpoint: Path | None = None,
    on_step: OnStep | None = None,
    onlooker: Onlooker | None = None,
    cache: EncodingCache | None = None,
    processes: Processes = ALONE,
) -> Adapter:
    """Train `source` and return its adapter; `on_step(step, loss)` is called after every step, then the onlooker.

    With `checkpoint`, a folder, training goes on from there after an interruption; with `cache` what is encoded is kept
    on disk, until its `finish` is called. Of several `processes` each runs its part of a step's rows and returns the
    adapter; the main one alone keeps checkpoints and calls the onlooker. Of kind none nothing is learned: the adapter
    is the source's statistics. Raises BadInput for settings out of range and RunFailed where the loss is not finite or
    the device's memory is too small. The backbone is left as it was, bit for bit.
    """
    check_settings(settings)
    exact = deterministic_kernels(backbone.device, settings.deterministic)
    with backbone.lock, memory_is_told(backbone), exact:
        data = encode_source(source, backbone, settings, settings.trigger or source.trigger, cache=cache)
        with trainable(backbone, settings, source.manifest().merkle_root) as parameters:
            again = bool(parameters) and checkpoints(parameters, data, backbone, settings, bound=True)[0]
            run = _Run(parameters, data, backbone, settings, source, processes, again)
            with checkpointing(backbone, again):
                log = _optimize(run, checkpoint, on_step, onlooker) if parameters else []
            weights = read_out(parameters, backbone, settings)
    return _adapter(run, weights, trained_statistics(source, data, backbone, cache), log)


def _adapter(
    run: _Run,
    weights: dict[str, Tensor],
    statistics: Statistics | None,
    log: Sequence[dict[str, float]] = (),
) -> Adapter:
    """The adapter of these LoRA weights and of the soft prompt as it is."""
    source, backbone, settings = run.source, run.backbone, run.settings
    prompt = {name: folded(p, 1.0) for name, p in run.words().soft.items()}
    record = AdapterRecord(
        source=source.name,
        kind=settings.kind,
        unconditional=settings.unconditional,
        trigger=settings.trigger or source.trigger,
        backbone=BackboneRecord(
            name=backbone.name, digest=backbone.digest, architecture=backbone.architecture
        ),
        settings=asdict(settings),
        sha256=adapter_digest(weights, prompt, statistics),
        source_digest=run.source_digest,
        items=len(source.items),
        license=source.license,
        author=source.author,
        origin=source.origin,
        attribution=source.attribution,
        versions={name: version(name) for name in ("torch", "diffusers", "transformers", "peft")},
        device=device_class(backbone.device, backbone.dtype, settings.mixed_precision, run.processes.count),
    )
    return Adapter(source.name, weights, prompt, statistics, record, source.manifest(), tuple(log))


def check_settings(settings: TrainSettings) -> None:
    """Raise BadInput for a setting that is out of range."""
    if settings.slices != 1:
        raise BadInput(f"slices is {settings.slices}; train_source trains slices, train_adapter one whole")
    for name in (
        "steps",
        "batch_size",
        "rank",
        "prompt_tokens",
        "gradient_accumulation",
        "held_out_every",
        "checkpoint_every",
    ):
        if getattr(settings, name) < 1:
            raise BadInput(f"{name} is {getattr(settings, name)}; it takes 1 or more")
    names: dict[str, tuple[str, ...]] = {
        "kind": get_args(Kind),
        "targets": get_args(Targets),
        "gradient_checkpointing": get_args(Checkpointing),
        "unconditional": get_args(Unconditional),
        "lr_scheduler": get_args(RateSchedule),
        "mixed_precision": get_args(Precision),
    }
    for name, accepted in names.items():
        if getattr(settings, name) not in accepted:
            raise BadInput(f"{name} {getattr(settings, name)!r} is unknown; accepted: {', '.join(accepted)}")
    if not 0 <= settings.alpha < math.inf:
        raise BadInput(f"alpha is {settings.alpha}; it takes a number above 0, or 0 for the rank")
    if settings.train_text_encoder and "lora" not in settings.kind:
        raise BadInput(
            f"train_text_encoder is a LoRA, and kind is {settings.kind}; it takes kind lora or lora+prompt"
        )
    if not 0 < settings.learning_rate < 1:
        raise BadInput(f"learning_rate is {settings.learning_rate}; it takes a number between 0 and 1")
    if not settings.loraplus_lr_ratio > 0:
        raise BadInput(
            f"loraplus_lr_ratio is {settings.loraplus_lr_ratio}; it takes a number above 0, 1 is off"
        )
    for name in ("caption_dropout", "ema_decay", "held_out"):
        if not 0 <= getattr(settings, name) < 1:
            raise BadInput(f"{name} is {getattr(settings, name)}; it takes 0 up to, not including, 1")
    for name in ("lr_warmup", "noise_offset"):
        if not 0 <= getattr(settings, name) <= 1:
            raise BadInput(f"{name} is {getattr(settings, name)}; it takes 0 to 1")
    if settings.patience < 0 or (settings.patience and not settings.held_out):
        raise BadInput(
            f"patience is {settings.patience} with held_out {settings.held_out}; it takes 0 or more measurements, "
            "and pictures held out to measure on, such as held_out=0.1"
        )


def checkpoints(
    parameters: Parameters,
    data: EncodedSource,
    backbone: Backbone,
    settings: TrainSettings,
    bound: bool = False,
) -> tuple[bool, Activations]:
    """Whether activations are to be computed again, and, for "auto", what decided it. The caller holds the lock.

    With `bound` the probe may tell a bound instead, which decides the same and costs half.
    """
    if settings.gradient_checkpointing != "auto":
        return settings.gradient_checkpointing == "on", Activations(0, 0)
    words = own_words(parameters, backbone, settings)
    measured = measure_activations(words, data, backbone, settings, bound)
    return not measured.fit, measured


@contextmanager
def memory_is_told(backbone: Backbone) -> Iterator[None]:
    """Raise RunFailed, which says what would help, where the device's memory is too small."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise RunFailed(
            f"the memory of {backbone.device} is too small for this training; give a smaller batch_size (with "
            "gradient_accumulation the batch stays as large), a lower resolution, or gradient_checkpointing=on"
        ) from error


@dataclass(frozen=True)
class _Run:
    """What does not change while one source is trained, and the parameters, whose values do."""

    parameters: Parameters
    data: EncodedSource
    backbone: Backbone
    settings: TrainSettings
    source: Source
    processes: Processes
    checkpointing: bool

    @property
    def source_digest(self) -> str:
        """Of the manifest."""
        return self.source.manifest().merkle_root

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must be of."""
        return {
            "backbone": self.backbone.digest,
            "source": self.source_digest,
            "settings": settings_of_result(asdict(self.settings)),
        }

    def words(self) -> OwnWords:
        """How the adapter reads, as it is now."""
        return own_words(self.parameters, self.backbone, self.settings)


def _optimize(
    run: _Run, checkpoint: Path | None, on_step: OnStep | None, onlooker: Onlooker | None
) -> list[dict[str, float]]:
    """Take all steps, or stop early, and leave the parameters as the adapter is to have them."""
    parameters, settings = run.parameters, run.settings
    optimizer = new_optimizer(parameters, settings)
    average = copies(parameters) if settings.ema_decay else {}
    best = copies(parameters) if settings.patience else {}
    kept = {"average": average, "best": best}
    step, log = 0, list[dict[str, float]]()
    if checkpoint:
        step, log = load_checkpoint(checkpoint, parameters, optimizer, run.identity(), kept)
    measured = held_out_batches(run.data, run.backbone, settings, run.source_digest)
    while step < settings.steps and not _is_enough(log, settings):
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * rate_share(step, settings)
        loss = _add_gradients(run, step)
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        update_average(average, parameters, step, settings.ema_decay)
        log.append({"step": step, "loss": round(loss, 6)})
        if step == 1 and run.checkpointing:
            log[-1]["gradient_checkpointing"] = True
        last = step == settings.steps
        if measured and (step % settings.held_out_every == 0 or last):
            _measure(run, measured, log, average, best)
        if checkpoint and run.processes.main and (step % settings.checkpoint_every == 0 or last):
            save_checkpoint(checkpoint, step, parameters, optimizer, run.identity(), log, kept)
        if on_step:
            on_step(step, loss)
        if onlooker and run.processes.main:
            _show(run, onlooker, log[-1], average)
    put(parameters, best if best and best_so_far(log)[0] else average or parameters)
    return log


def _show(run: _Run, onlooker: Onlooker, row: Mapping[str, float], average: Mapping[str, Tensor]) -> None:
    """Hand the onlooker a row of the log and, where it wants it, the adapter as it would be written now."""
    step, settings, unet = int(row["step"]), run.settings, run.backbone.unet
    onlooker.on_row({**row, "learning_rate": settings.learning_rate * rate_share(step - 1, settings)})
    if not onlooker.wants(step, settings.steps):
        return
    with standing_in(run.parameters, average):
        adapter = _adapter(run, read_out(run.parameters, run.backbone, settings), None)
    lora.activate(unet, None)
    try:
        onlooker.on_adapter(step, adapter)
    finally:
        if "lora" in settings.kind:
            lora.activate(unet, LORA_NAME, trainable=True)


def _is_enough(log: list[dict[str, float]], settings: TrainSettings) -> bool:
    return 0 < settings.patience <= best_so_far(log)[1]


def _measure(
    run: _Run,
    batches: list[Batch],
    log: list[dict[str, float]],
    average: Mapping[str, Tensor],
    best: Mapping[str, Tensor],
) -> None:
    """Note the held-out loss in the log's last row; the best weights so far are copied into `best`."""
    with standing_in(run.parameters, average):
        loss = held_out_loss(run.words(), batches, run.data, run.backbone, run.settings)
        log[-1]["held_out"] = run.processes.of_main(loss, run.backbone.device)
        if best_so_far(log)[1] == 0:
            for name, value in best.items():
                value.copy_(run.parameters[name].detach())


def _add_gradients(run: _Run, step: int) -> float:
    """Draw one step's rows and leave their mean error's gradient in the parameters; that mean. Raises RunFailed."""
    rows = run.settings.rows
    generator = keyed_generator(f"{run.settings.seed} {run.source_digest} {step}")
    batch = draw_batch(run.data, run.backbone, run.settings, rows, generator)
    own = batch.part(run.processes.share(rows)) if run.processes.count > 1 else batch
    loss = add_gradients(run.parameters, own, run.data, run.backbone, run.settings, step, rows)
    total = torch.tensor(loss, dtype=torch.float32, device=run.data.device)
    run.processes.add_up([*(p.grad for p in run.parameters.values() if p.grad is not None), total])
    return float(total) if run.processes.count > 1 else loss


def add_gradients(
    parameters: Parameters,
    batch: Batch,
    data: EncodedSource,
    backbone: Backbone,
    settings: TrainSettings,
    step: int,
    of: int = 0,
) -> float:
    """Run a batch in parts of `batch_size` rows, and leave the mean error's gradient in the parameters.

    Returns the mean: over `of` rows, where the batch is some of so many. Raises RunFailed where it is not finite.
    """
    loss, rows, words = 0.0, len(batch.t), own_words(parameters, backbone, settings)
    for start in range(0, rows, settings.batch_size):
        part = batch.part(slice(start, start + settings.batch_size))
        errors = weighted_errors(words, part, data, backbone, settings)
        error = errors.mean() / ((of or rows) / len(errors))
        error.backward()  # type: ignore[no-untyped-call]
        loss += error.item()  # a GPU is waited for here, once its work is queued
        if not math.isfinite(loss):
            raise RunFailed(f"the loss at step {step} is {loss}; use a lower learning_rate or dtype float32")
    return loss
