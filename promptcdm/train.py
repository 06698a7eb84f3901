"""One source trains its adapter, alone, on the frozen backbone.

    min over the adapter of  E_{x_0, t, noise} weight(t) || prediction(x_t, t, c) - target ||^2

`train_adapter` is handed one source and a backbone: no store and no other source, so it cannot see one. What it returns
is a function of the backbone's digest, the source's digest, the settings and the library versions: every random number
is keyed by (seed, source digest, step), so neither resuming nor anything else in the process changes a bit on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
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
from promptcdm.device_class import device_class
from promptcdm.encoded_source import EncodedSource, encode_captions, encode_source
from promptcdm.errors import BadInput, RunFailed
from promptcdm.held_out import best_so_far, held_out_batches, held_out_loss
from promptcdm.keyed_random import keyed_generator
from promptcdm.learning_rate import rate_share
from promptcdm.settings import Kind, Precision, RateSchedule, TrainSettings, Unconditional
from promptcdm.source import Source
from promptcdm.statistics import caption_prototypes, latent_covariance, on_grid
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
) -> Adapter:
    """Train `source` and return its adapter; `on_step(step, loss)` is called after every step.

    With `checkpoint`, a folder, training goes on from there after an interruption. Raises BadInput for settings out of
    range and RunFailed where the loss is not finite or the device's memory is too small. The backbone is left as it
    was, bit for bit.
    """
    check_settings(settings)
    manifest = source.manifest()
    trigger = settings.trigger or source.trigger
    with backbone.lock, memory_is_told(backbone):
        data = encode_source(source, backbone, settings, trigger)
        with trainable(backbone, settings, manifest.merkle_root) as parameters:
            run = _Run(parameters, data, backbone, settings, manifest.merkle_root)
            log = _optimize(run, checkpoint, on_step)
            weights = lora.read_out(backbone.unet, LORA_NAME)
    prompt = {n: p.detach().float().cpu() for n, p in soft_prompt(parameters).items()}
    statistics = _statistics(source, backbone, data)
    record = AdapterRecord(
        source=source.name,
        kind=settings.kind,
        unconditional=settings.unconditional,
        trigger=trigger,
        backbone=BackboneRecord(
            name=backbone.name, digest=backbone.digest, architecture=backbone.architecture
        ),
        settings=asdict(settings),
        sha256=adapter_digest(weights, prompt, statistics),
        source_digest=manifest.merkle_root,
        items=len(source.items),
        license=source.license,
        author=source.author,
        origin=source.origin,
        attribution=source.attribution,
        versions={name: version(name) for name in ("torch", "diffusers", "transformers", "peft")},
        device=device_class(backbone.device, backbone.dtype, settings.mixed_precision),
    )
    return Adapter(source.name, weights, prompt, statistics, record, manifest, tuple(log))


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
                start = torch.randn(settings.prompt_tokens, table.shape[1], generator=generator)
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
            a.data.copy_((torch.rand(a.shape, generator=generator) * 2 - 1) * bound)
            b.data.zero_()
            parameters[f"lora.{name}.lora_A"], parameters[f"lora.{name}.lora_B"] = a, b
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
    source_digest: str

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must be of."""
        return {
            "backbone": self.backbone.digest,
            "source": self.source_digest,
            "settings": asdict(self.settings),
        }


def _optimize(run: _Run, checkpoint: Path | None, on_step: OnStep | None) -> list[dict[str, float]]:
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
        if checkpoint and (step % settings.checkpoint_every == 0 or last):
            save_checkpoint(checkpoint, step, parameters, optimizer, run.identity(), log, kept)
        if on_step:
            on_step(step, loss)
    put(parameters, best if best and best_so_far(log)[0] else average or parameters)
    return log


def new_optimizer(parameters: Parameters, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW, each parameter with a group of its own; `rate` is its learning rate before the schedule."""
    rates = {
        "lora": settings.learning_rate,
        "prompt": 10 * settings.learning_rate,
    }  # embeddings move in larger steps
    groups = [{"params": [p], "rate": rates[n.partition(".")[0]], "lr": 0.0} for n, p in parameters.items()]
    return torch.optim.AdamW(groups, weight_decay=1e-2)


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
        log[-1]["held_out"] = held_out_loss(soft, batches, run.data, run.backbone, run.settings)
        if best_so_far(log)[1] == 0:
            for name, value in best.items():
                value.copy_(run.parameters[name].detach())


def _add_gradients(run: _Run, step: int) -> float:
    """Draw one step's rows and leave their mean error's gradient in the parameters; that mean. Raises RunFailed."""
    generator = _generator(run.settings, run.source_digest, step)
    return add_gradients(
        run.parameters,
        draw_batch(run.data, run.backbone, run.settings, run.settings.rows, generator),
        run.data,
        run.backbone,
        run.settings,
        step,
    )


def add_gradients(
    parameters: Parameters,
    batch: Batch,
    data: EncodedSource,
    backbone: Backbone,
    settings: TrainSettings,
    step: int,
) -> float:
    """Run a batch in parts of `batch_size` rows, and leave the mean error's gradient in the parameters.

    Returns the mean. Raises RunFailed where it is not finite.
    """
    size, loss = settings.batch_size, 0.0
    parts = len(batch.t) // size
    for n in range(parts):
        part = batch.part(slice(n * size, (n + 1) * size))
        error = weighted_errors(soft_prompt(parameters), part, data, backbone, settings).mean() / parts
        if not error.isfinite():
            raise RunFailed(
                f"the loss at step {step} is {error.item()}; use a lower learning_rate or dtype float32"
            )
        error.backward()  # type: ignore[no-untyped-call]
        loss += error.item()
    return loss


@torch.no_grad()
def _statistics(source: Source, backbone: Backbone, data: EncodedSource) -> Statistics:
    """What the router may know of this source, from its own pictures and captions (without the trigger)."""
    captions = sorted({item.caption for item in source.items})
    means = [part.mean.float().cpu() for part in encode_captions(captions, backbone)]
    prototypes, share = caption_prototypes(torch.cat(means))
    scale = backbone.pipe.vae.config.scaling_factor
    mean, std = on_grid([(b.mean[0] * scale, b.std[0] * scale) for b in data.buckets])
    latent_mean, latent_var, factor = latent_covariance(mean, std)
    return Statistics(len(source.items), latent_mean, latent_var, prototypes, share, factor)
