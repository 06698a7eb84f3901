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
from promptcdm.adapter import Adapter, AdapterRecord, BackboneRecord, Statistics, adapter_digest
from promptcdm.backbone import Backbone
from promptcdm.batch import Batch, draw_batch, weighted_errors
from promptcdm.checkpoint import load_checkpoint, save_checkpoint
from promptcdm.device_class import computes_in_bf16, deterministic_kernels, device_class
from promptcdm.encoded_source import EncodedSource, encode_source, trained_statistics
from promptcdm.encoding_cache import EncodingCache
from promptcdm.errors import BadInput, RunFailed
from promptcdm.held_out import best_so_far, held_out_batches, held_out_loss
from promptcdm.keyed_random import keyed_generator
from promptcdm.learning_rate import rate_share
from promptcdm.onlooker import Onlooker
from promptcdm.processes import ALONE, Processes
from promptcdm.settings import Kind, Precision, RateSchedule, TrainSettings, Unconditional
from promptcdm.source import Source
from promptcdm.weight_average import copies, put, standing_in, update_average

OnStep = Callable[[int, float], None]
Parameters = dict[str, nn.Parameter]
LORA_NAME = "adapter_in_training"


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
    adapter; the main one alone keeps checkpoints and calls the onlooker. Raises BadInput for settings out of
    range and RunFailed where the loss is not finite or the device's memory is too small. The backbone is left as it
    was, bit for bit.
    """
    check_settings(settings)
    exact = deterministic_kernels(backbone.device, settings.deterministic)
    with backbone.lock, memory_is_told(backbone), exact:
        data = encode_source(source, backbone, settings, settings.trigger or source.trigger, cache=cache)
        with trainable(backbone, settings, source.manifest().merkle_root) as parameters:
            run = _Run(parameters, data, backbone, settings, source, processes)
            log = _optimize(run, checkpoint, on_step, onlooker)
            weights = lora.read_out(backbone.unet, LORA_NAME)
    return _adapter(run, weights, trained_statistics(source, data, backbone, cache), log)


def _adapter(
    run: _Run,
    weights: dict[str, Tensor],
    statistics: Statistics | None,
    log: Sequence[dict[str, float]] = (),
) -> Adapter:
    """The adapter of these LoRA weights and of the soft prompt as it is."""
    source, backbone, settings = run.source, run.backbone, run.settings
    prompt = {
        n: p.detach().to("cpu", torch.float32, copy=True) for n, p in soft_prompt(run.parameters).items()
    }
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
        "targets": ("attention", "wide"),
        "unconditional": get_args(Unconditional),
        "lr_scheduler": get_args(RateSchedule),
        "mixed_precision": get_args(Precision),
    }
    for name, accepted in names.items():
        if getattr(settings, name) not in accepted:
            raise BadInput(f"{name} {getattr(settings, name)!r} is unknown; accepted: {', '.join(accepted)}")
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


def _generator(settings: TrainSettings, source_digest: str, step: int) -> torch.Generator:
    return keyed_generator(f"{settings.seed} {source_digest} {step}")


@contextmanager
def memory_is_told(backbone: Backbone) -> Iterator[None]:
    """Raise RunFailed, which says what would help, where the device's memory is too small."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise RunFailed(
            f"the memory of {backbone.device} is too small for this training; give a smaller batch_size (with "
            "gradient_accumulation the batch stays as large), a lower resolution, or gradient_checkpointing"
        ) from error


@contextmanager
def trainable(backbone: Backbone, settings: TrainSettings, source_digest: str) -> Iterator[Parameters]:
    """The new adapter's parameters, acting in the backbone until the block ends. The caller holds the UNet's lock."""
    unet = backbone.unet
    again = settings.gradient_checkpointing and not unet.is_gradient_checkpointing
    try:
        if again:
            unet.enable_gradient_checkpointing()
        yield _new_parameters(backbone, settings, source_digest)
    finally:
        lora.remove(unet, LORA_NAME)
        if again:
            unet.disable_gradient_checkpointing()


def _new_parameters(backbone: Backbone, settings: TrainSettings, source_digest: str) -> Parameters:
    """Fresh fp32 parameters by name: `lora.<module>.<part>` in the UNet, `prompt.<text encoder>` beside it."""
    generator = _generator(settings, source_digest, -1)
    parameters: Parameters = {}
    if "prompt" in settings.kind:
        for name in ("text_encoder", "text_encoder_2"):
            encoder = getattr(backbone.pipe, name, None)
            if encoder is not None:
                table = encoder.get_input_embeddings().weight
                start = torch.randn(
                    settings.prompt_tokens, table.shape[1], generator=generator, dtype=torch.float32
                )
                parameters[f"prompt.{name}"] = nn.Parameter(
                    (start * table.float().std().cpu()).to(backbone.device)
                )
    if "lora" in settings.kind:
        names = lora.target_modules(backbone.unet, settings.targets)
        lora.new_layers(backbone.unet, LORA_NAME, dict.fromkeys(names, settings.rank))
        lora.activate(backbone.unet, LORA_NAME, trainable=True)
        for name, layer in lora.lora_layers(backbone.unet):
            a, b = layer.lora_A[LORA_NAME].weight, layer.lora_B[LORA_NAME].weight
            bound = 1 / math.sqrt(a[0].numel())
            drawn = torch.rand(a.shape, generator=generator, dtype=torch.float32)
            a.data.copy_((drawn * 2 - 1) * bound)
            b.data.zero_()
            parameters[f"lora.{name}.lora_A"], parameters[f"lora.{name}.lora_B"] = a, b
        if backbone.dtype == torch.bfloat16 and computes_in_bf16(settings.mixed_precision, backbone.device):
            lora.compute_in_bf16(backbone.unet, LORA_NAME)
    return parameters


def soft_prompt(parameters: Mapping[str, nn.Parameter]) -> Parameters:
    """The learned tokens by text encoder; {} where only a LoRA is trained."""
    return {n.removeprefix("prompt."): p for n, p in parameters.items() if n.startswith("prompt.")}


@dataclass(frozen=True)
class _Run:
    """What does not change while one source is trained, and the parameters, whose values do."""

    parameters: Parameters
    data: EncodedSource
    backbone: Backbone
    settings: TrainSettings
    source: Source
    processes: Processes

    @property
    def source_digest(self) -> str:
        """Of the manifest."""
        return self.source.manifest().merkle_root

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must be of."""
        return {
            "backbone": self.backbone.digest,
            "source": self.source_digest,
            "settings": asdict(self.settings),
        }


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
        adapter = _adapter(run, lora.read_out(unet, LORA_NAME), None)
    lora.activate(unet, None)
    try:
        onlooker.on_adapter(step, adapter)
    finally:
        if "lora" in settings.kind:
            lora.activate(unet, LORA_NAME, trainable=True)


def new_optimizer(parameters: Parameters, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW, a group each for A and B of the LoRA and for the soft prompt; `rate` is its rate before the schedule.

    Few groups, for on a GPU the parameters of a group are updated together, by one kernel.
    """
    rate = settings.learning_rate
    # B starts at zero and decides how far the output moves, A only where to; embeddings move in larger steps.
    rates = {".lora_A": rate, ".lora_B": settings.loraplus_lr_ratio * rate, "prompt.": 10 * rate}
    of_part = {part: [p for n, p in parameters.items() if part in n] for part in rates}
    groups = [{"params": own, "rate": rates[part], "lr": 0.0} for part, own in of_part.items() if own]
    on_gpu = all(p.is_cuda for p in parameters.values())
    return torch.optim.AdamW(groups, weight_decay=1e-2, fused=on_gpu or None)


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
        soft = soft_prompt(run.parameters)
        loss = held_out_loss(soft, batches, run.data, run.backbone, run.settings)
        log[-1]["held_out"] = run.processes.of_main(loss, run.backbone.device)
        if best_so_far(log)[1] == 0:
            for name, value in best.items():
                value.copy_(run.parameters[name].detach())


def _add_gradients(run: _Run, step: int) -> float:
    """Draw one step's rows and leave their mean error's gradient in the parameters; that mean. Raises RunFailed."""
    rows = run.settings.rows
    generator = _generator(run.settings, run.source_digest, step)
    batch = draw_batch(run.data, run.backbone, run.settings, rows, generator)
    own = batch.part(run.processes.share(rows)) if run.processes.count > 1 else batch
    loss = add_gradients(run.parameters, own, run.data, run.backbone, run.settings, step, rows)
    total = torch.tensor(loss, dtype=torch.float32, device=run.backbone.device)
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
    loss, rows = 0.0, len(batch.t)
    for start in range(0, rows, settings.batch_size):
        part = batch.part(slice(start, start + settings.batch_size))
        errors = weighted_errors(soft_prompt(parameters), part, data, backbone, settings)
        error = errors.mean() / ((of or rows) / len(errors))
        error.backward()  # type: ignore[no-untyped-call]
        loss += error.item()  # a GPU is waited for here, once its work is queued
        if not math.isfinite(loss):
            raise RunFailed(f"the loss at step {step} is {loss}; use a lower learning_rate or dtype float32")
    return loss
