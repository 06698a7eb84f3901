"""Every setting, once: the command line's flags, the TOML files and the Python API all come from these fields.

The order is: the default here, then a `--config` TOML file, then a flag. An unknown key is an error.
Standard library only, so that `promptcdm --help` imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal["lora", "prompt", "lora+prompt", "none"]
Unconditional = Literal["backbone", "adapter"]
RouterName = Literal["uniform", "prior", "prompt", "posterior", "regional"]
DrawName = Literal["", "once", "step"]
BranchName = Literal["recorded", "backbone", "adapter"]
Precision = Literal["auto", "bf16", "no"]
Targets = Literal["attention", "wide", "conv"]
Checkpointing = Literal["auto", "on", "off"]
ExportFormat = Literal["kohya", "diffusers", "peft"]
RateSchedule = Literal["cosine", "linear", "constant"]
TrackerName = Literal["", "tensorboard", "wandb"]
AttributeMethod = Literal["denoising", "leave-one-out", "statistics", "palette", "weights"]
SchedulerName = Literal["default", "ddim", "ddpm", "dpm++", "unipc", "euler", "lcm"]


def _setting(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True)
class BackboneSettings:
    """Which Stable Diffusion, and where it runs."""

    backbone: str = _setting(
        "nano", "nano, a diffusers folder, a hub id or a single-file safetensors checkpoint"
    )
    device: str = _setting("auto", "auto, cpu, cuda or mps")
    dtype: str = _setting("auto", "auto, float32, float16 or bfloat16; auto is float32 on a CPU")
    variant: str = _setting("", "weight variant of a diffusers folder or hub id, such as fp16")


@dataclass(frozen=True)
class TrainSettings:
    """How one source trains its adapter."""

    kind: Kind = _setting(
        "lora",
        "lora, prompt, lora+prompt, or none: no weights, the backbone itself as a source of the sum, known to the "
        "routers by pictures and captions of what it draws",
    )
    steps: int = _setting(500, "optimizer steps")
    batch_size: int = _setting(8, "pictures a step")
    rank: int = _setting(8, "LoRA rank r")
    alpha: float = _setting(
        0.0, "LoRA alpha: it acts with strength alpha / rank, folded into the files; 0 is the rank"
    )
    targets: Targets = _setting(
        "attention",
        "attention (to_q, to_k, to_v, to_out.0), wide (feed-forward and proj too) or conv (the resnets' too)",
    )
    train_text_encoder: bool = _setting(
        False, "a LoRA of the text encoders too: their attention, with wide and conv also feed-forward"
    )
    prompt_tokens: int = _setting(4, "learned token embeddings of a soft prompt")
    learning_rate: float = _setting(1e-3, "AdamW learning rate; ten times as much for a soft prompt")
    loraplus_lr_ratio: float = _setting(
        1.0,
        "learning rate of a LoRA's B over that of its A; 10 or so learns faster (LoRA+, Hayou et al. 2024)",
    )
    lr_scheduler: RateSchedule = _setting(
        "cosine", "cosine or linear, both to 0 at the last step, or constant"
    )
    lr_warmup: float = _setting(0.05, "share of the steps in which the learning rate rises to its full value")
    gradient_accumulation: int = _setting(
        1, "batches a step, one after another: the memory of one, the gradient of all"
    )
    gradient_checkpointing: Checkpointing = _setting(
        "auto",
        "compute activations again instead of keeping them, a third more work: on, off, or auto (on where a batch's "
        "do not fit into the free memory)",
    )
    ema_decay: float = _setting(
        0.0, "keep a running average of the adapter, and write that; 0.99 or so, 0 is off"
    )
    min_snr: float = _setting(5.0, "min-SNR weighting (Hang et al. 2023), gamma; 0 is off")
    noise_offset: float = _setting(
        0.0, "a share of noise that is one value a channel, for darker and lighter pictures; 0.05 or so"
    )
    resolution: int = _setting(0, "training resolution in pixels; 0 is the backbone's own")
    buckets: bool = _setting(
        False, "train in sizes near each picture's aspect, a batch of one size, instead of square crops"
    )
    unconditional: Unconditional = _setting(
        "backbone",
        "unconditional branch at inference: the bare backbone, or the adapter trained with caption dropout",
    )
    caption_dropout: float = _setting(
        0.1, "share of captions replaced by the empty one; only with unconditional=adapter"
    )
    flip: bool = _setting(False, "mirror half of the pictures")
    trigger: str = _setting(
        "", "text put before each caption of this source, and before its prompts at inference"
    )
    mixed_precision: Precision = _setting(
        "auto",
        "what the frozen UNet computes in: bf16, no, or auto (bf16 where the device has instructions for it); "
        "the adapter stays fp32",
    )
    deterministic: bool = _setting(
        False, "on a GPU, only kernels that give the same bytes each time; a CPU's always do"
    )
    held_out: float = _setting(
        0.0, "share of the pictures that is not trained on and measured by the same noise each time"
    )
    held_out_every: int = _setting(50, "steps between measurements on the pictures held out")
    patience: int = _setting(
        0, "stop after so many measurements without a lower loss, and keep the best weights; 0 never stops"
    )
    checkpoint_every: int = _setting(100, "steps between resumable checkpoints")
    seed: int = _setting(0, "seed of everything random in training")
    slices: int = _setting(
        1, "train so many slices, each --steps long: forgetting a picture trains one of them again"
    )

    @property
    def rows(self) -> int:
        """Pictures of one step: those of all its batches."""
        return self.batch_size * self.gradient_accumulation

    @property
    def lora_scale(self) -> float:
        """The strength alpha / rank that the LoRA is trained at."""
        return (self.alpha or self.rank) / self.rank


@dataclass(frozen=True)
class RunSettings:
    """What goes on beside a training. Nothing of it changes the adapter, or is recorded with it."""

    sample_every: int = _setting(0, "steps between sample pictures; 0 draws none")
    sample_prompts: str = _setting(
        "", "what the samples show, texts with | between; nothing takes the source's first four captions"
    )
    samples: str = _setting("samples", "folder of the samples, a grid a time: NAME/step-000100.png")
    tracker: TrackerName = _setting(
        "", "tensorboard or wandb: loss, learning rate, held-out loss and samples go there too"
    )
    tracker_folder: str = _setting("logs", "where tensorboard's files go; wandb has a place of its own")
    cache: str = _setting(
        "",
        "folder for encoded pictures and captions, which can be decoded: deleted after the run unless kept",
    )
    keep_cache: bool = _setting(False, "keep what is in the cache for the next training")


def settings_of_result(recorded: Mapping[str, object]) -> dict[str, object]:
    """Those of a record that decide what comes out; one that did not exist when it was written had its default.

    Whether activations are kept or computed again decides time and memory alone.
    """
    whole = {**asdict(TrainSettings()), **recorded}
    return {name: value for name, value in whole.items() if name != "gradient_checkpointing"}


def same_settings(recorded: Mapping[str, object], settings: TrainSettings) -> bool:
    """Whether what a record tells of is the result of these settings."""
    return settings_of_result(recorded) == settings_of_result(asdict(settings))


@dataclass(frozen=True)
class GenerateSettings:
    """How pictures are made."""

    router: RouterName = _setting(
        "posterior", "uniform, prior, prompt or posterior; regional for prompts that join ideas"
    )
    top_k: int = _setting(0, "keep the k largest weights of each picture and step; 0 keeps all")
    min_weight: float = _setting(0.0, "leave out weights below this; the largest is always kept")
    draw: DrawName = _setting(
        "", "run one source, drawn by its weight: once a picture, or at each step; nothing runs the sum"
    )
    guidance_start: float = _setting(0.0, "guidance only from here, in 0 (all noise) to 1 (the picture)")
    guidance_stop: float = _setting(1.0, "guidance only up to here")
    unconditional_from: BranchName = _setting(
        "recorded",
        "unconditional branch: as each adapter was trained (recorded), backbone or adapter for all",
    )
    cache_interval: int = _setting(1, "run the UNet's deep part only every so many steps; 1 is every step")
    reuse_text: bool = _setting(
        True, "compute the attention's keys and values of a text once a run, not at every step"
    )
    negative_prompt: str = _setting("", "what the unconditional branch is told")
    num_inference_steps: int = _setting(25, "denoising steps")
    guidance_scale: float = _setting(
        0.0, "classifier-free guidance; 1 is off, 0 what suits the backbone: 2 for nano, else 5"
    )
    height: int = _setting(0, "pixels; 0 is the backbone's own")
    width: int = _setting(0, "pixels; 0 is the backbone's own")
    scheduler: SchedulerName = _setting(
        "default", "default (the backbone's), ddim, ddpm, dpm++, unipc, euler or lcm"
    )
    num_images: int = _setting(1, "pictures a prompt")
    seed: int = _setting(0, "picture n has its own generator, seeded seed + n")


@dataclass(frozen=True)
class Provenance:
    """Whose pictures they are. None leaves it to `source.toml`, or to what an imported file says itself."""

    license: str | None = _setting(None, "SPDX identifier of the licence")
    author: str | None = _setting(None, "who made the pictures")
    origin: str | None = _setting(None, "where they come from")
    attribution: str | None = _setting(None, "the line that the licence asks for")


@dataclass(frozen=True)
class ImportSettings:
    """How a LoRA of another tool's making is read."""

    trigger: str = _setting("", "text put before the prompts of this source")
    unconditional: Unconditional = _setting(
        "adapter", "unconditional branch at inference: backbone, or the adapter itself"
    )
    unet_only: bool = _setting(False, "leave out a text-encoder LoRA in the same file")
    weight_name: str | None = _setting(None, "which of several files of a folder or repository")


@dataclass(frozen=True)
class FidelitySettings:
    """How two folders of pictures are compared."""

    subsample: int = _setting(
        0, "draw so many pictures of each folder, by the seed; 0 takes all, which must be equally many"
    )
    neighbours: int = _setting(5, "k of precision, recall, density and coverage")
    splits: int = _setting(10, "how often the real pictures are split to compare them with each other")
    batch_size: int = _setting(32, "pictures that the model reads at once")
    seed: int = _setting(0, "seed of what is drawn: pictures, groups of the intervals, splits")
    device: str = _setting("auto", "auto, cpu, cuda or mps")


@dataclass(frozen=True)
class LeakageSettings:
    """How leakage is measured."""

    noise_levels: int = _setting(
        10, "noise levels at which denoising errors are taken, evenly over the schedule"
    )
    draws: int = _setting(1, "noises a level, and pure noises for the text-conditional magnitude")
    max_pictures: int = _setting(300, "pictures of each group whose errors are taken, drawn by the seed")
    control_pictures: int = _setting(32, "members that the positive control is overfitted to")
    control_steps: int = _setting(400, "training steps of the positive control; 0 leaves it out")
    threshold: float = _setting(
        0.0, "similarity above which a picture counts as near; 0 is the training pictures' own 95 % quantile"
    )
    batch_size: int = _setting(32, "pictures that a model reads at once")
    seed: int = _setting(0, "seed of what is drawn: noises, pictures, the control's training, intervals")


@dataclass(frozen=True)
class AttributeSettings:
    """How a picture is attributed to sources."""

    method: AttributeMethod = _setting(
        "denoising",
        "denoising, leave-one-out, statistics or palette; weights reads the record of a generated picture",
    )
    noise_levels: int = _setting(8, "noise levels of denoising and leave-one-out, evenly apart in log-SNR")
    draws: int = _setting(2, "noises a level, the same for every picture")
    router: RouterName = _setting(
        "posterior", "router of leave-one-out: uniform, prior, prompt, posterior or regional"
    )
    prompt: str = _setting("", "what the pictures show, if it is to be told; none is best where unsure")
    batch_size: int = _setting(8, "pictures at once")
    seed: int = _setting(0, "seed of the noises")


@dataclass(frozen=True)
class ReportSettings:
    """What the report of evaluations holds."""

    pictures: int = _setting(100, "captions shown with their pictures, the lowest scores first; 0 shows all")
    picture_size: int = _setting(256, "pixels; a larger picture is shown as a JPEG of this size")
