"""The frozen Stable Diffusion: a stock diffusers pipeline, its identity, and text and pictures as numbers.

pixels     (B, 3, H, W) in [-1, 1]
latents    (B, C, h, w), scaled by the VAE's scaling factor
alpha_bar  share of signal at a timestep, (T,)
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor
from transformers.utils import logging as transformers_logging

from promptcdm.adapter_record import AdapterRecord
from promptcdm.engine import FIXED_RANK, Engine
from promptcdm.errors import AdapterMismatch, BadInput
from promptcdm.lora import making_modules, plain_layers, target_modules
from promptcdm.prompt import PromptEmbeds, encode_prompts
from promptcdm.prompt_prior import PromptFeatures
from promptcdm.shipped import shipped
from promptcdm.text_lora import LearningTextLora, TextLora, acting, text_layers
from promptcdm.text_names import TEXT_ENCODERS

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


# nano's was measured on its adapters (docs/method.md, section 4): over the bare backbone's unconditional row, more
# guidance turns their style into distortion.
GUIDANCE, NANO_GUIDANCE = 5.0, 2.0


@dataclass(frozen=True)
class Backbone:
    """A loaded pipeline whose weights never change.

    `digest` names the weights whatever dtype they are loaded in; `architecture` decides which adapters fit at all.
    """

    pipe: Any  # StableDiffusionPipeline or StableDiffusionXLPipeline; a caller may set its `unet` to a composed one
    unet: Any  # the frozen UNet2DConditionModel itself
    name: str
    digest: str
    architecture: str
    alphas_cumprod: Tensor  # (T,) of the training schedule
    engine: Engine = field(repr=False)  # runs the UNet, for as many composed views as there are
    # Held by whoever encodes: a soft prompt's table stands in the encoder's place while it runs.
    text_lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    @classmethod
    def load(
        cls,
        model: str | Path = "nano",
        *,
        device: str = "auto",
        dtype: str = "auto",
        variant: str = "",
        slots: int = 33,
        bucket: int = 0,
    ) -> Backbone:
        """Load nano, a diffusers folder, a hub id or a single-file safetensors checkpoint.

        `slots` and `bucket` are those of its `Engine`.

        Raises BadInput where it is none of these or no Stable Diffusion 1.x, 2.x or XL.
        """
        place = torch.device(_device(device))
        if dtype != "auto" and dtype not in DTYPES:
            raise BadInput(f"dtype {dtype!r} is unknown; accepted: auto, {', '.join(DTYPES)}")
        wanted = DTYPES.get(dtype, torch.float32 if place.type == "cpu" else torch.float16)
        with making_modules, _quiet():
            pipe = _load_pipeline(model, torch.float16 if wanted == torch.float16 else torch.float32, variant)
            if not isinstance(pipe, (StableDiffusionPipeline, StableDiffusionXLPipeline)):
                raise BadInput(
                    f"{model} is a {type(pipe).__name__}; accepted: Stable Diffusion 1.x, 2.x and XL pipelines"
                )
            return cls._of(pipe, str(model), place, wanted, slots, bucket)

    @classmethod
    def _of(
        cls, pipe: Any, name: str, place: torch.device, dtype: torch.dtype, slots: int, bucket: int
    ) -> Backbone:
        pipe.set_progress_bar_config(disable=True)
        modules = {
            n: getattr(pipe, n) for n in ("unet", "vae", *TEXT_ENCODERS) if getattr(pipe, n, None) is not None
        }
        for module in modules.values():
            module.requires_grad_(False).eval()
        schedule = DDPMScheduler.from_config(pipe.scheduler.config)
        prediction = schedule.config.prediction_type
        identity = f"{prediction} {pipe.vae.config.scaling_factor}"
        digest = _digest(modules, identity)
        pipe.to(place, dtype)
        label = "nano" if name == "nano" else Path(name).name
        architecture = _architecture(pipe.unet.config)
        engine = Engine(pipe.unet, slots=slots, bucket=bucket)
        return cls(pipe, pipe.unet, label, digest, architecture, schedule.alphas_cumprod, engine)

    def compiled(
        self, *, bucket: int, rank: int = FIXED_RANK, targets: str = "attention", **options: Any
    ) -> Backbone:
        """This backbone with an engine of fixed shapes, compiled with `torch.compile(**options)`; use it alone.

        `bucket` rows a forward, LoRAs of at most `rank` on the layers that `targets` names ("attention" or "wide").
        Nothing that comes later is compiled anew. Raises BadInput for a bucket of 0.
        """
        self.engine.slots.close()  # its hooks would act in the same UNet
        layers = target_modules(self.unet, targets)
        engine = Engine(self.unet, slots=self.engine.slots.count, bucket=bucket, rank=rank, targets=layers)
        engine.compile(**options)
        return replace(self, engine=engine)

    @property
    def guidance_scale(self) -> float:
        """What is taken where no guidance scale is given."""
        return NANO_GUIDANCE if self.name == "nano" else GUIDANCE

    @property
    def lock(self) -> threading.RLock:
        """Held by whoever runs the UNet."""
        return self.engine.lock

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return torch.device(self.unet.device)

    @property
    def dtype(self) -> torch.dtype:
        """What the UNet computes in."""
        parameter: Tensor = next(self.unet.parameters())
        return parameter.dtype

    @property
    def prediction_type(self) -> str:
        """epsilon or v_prediction."""
        return str(self.pipe.scheduler.config.prediction_type)

    @property
    def resolution(self) -> int:
        """Pixels a side that the UNet was made for."""
        return int(self.unet.config.sample_size * self.pipe.vae_scale_factor)

    @property
    def module_shapes(self) -> dict[str, tuple[int, ...]]:
        """Weight shapes of the UNet's linear and convolution layers by name: what a LoRA may adapt."""
        return {
            name: tuple(layer.get_parameter("weight").shape)
            for name, layer in plain_layers(self.unet).items()
        }

    @property
    def text_module_shapes(self) -> dict[str, tuple[int, ...]]:
        """Weight shapes of the text encoders' linear layers, by their names in our files (`text_names`)."""
        return {
            name: tuple(layer.get_parameter("weight").shape)
            for name, layer in text_layers(self.text_encoders).items()
        }

    def check_text_lora(self, lora: TextLora) -> None:
        """Raise AdapterMismatch unless `lora` fits the text encoders."""
        lora.pairs(self.text_encoders)

    def check_made_for(self, record: AdapterRecord, *, allow_mismatch: bool = False) -> None:
        """Raise AdapterMismatch for an adapter of another architecture, and of other weights unless that is allowed."""
        trained = record.backbone
        if trained.architecture != self.architecture:
            raise AdapterMismatch(
                f"{record.source} was trained on {trained.name} ({trained.architecture}), this backbone is "
                f"{self.name} ({self.architecture}); load the one it was trained on"
            )
        if trained.digest != self.digest and not allow_mismatch:
            raise AdapterMismatch(
                f"{record.source} was trained on {trained.name} {trained.digest[:12]}, this backbone is {self.name} "
                f"{self.digest[:12]}; load the one it was trained on or allow the mismatch (--allow-backbone-mismatch)"
            )

    def encode_prompts(
        self,
        prompts: Sequence[str],
        soft: Mapping[str, Tensor] | None = None,
        lora: TextLora | LearningTextLora | None = None,
    ) -> PromptEmbeds:
        """Embed prompts (B), with a source's soft prompt and text-encoder LoRA where given; nothing of them stays."""
        encoders = self.text_encoders
        tokenizers = {n: getattr(self.pipe, n.replace("text_encoder", "tokenizer")) for n in encoders}
        with self.text_lock, acting(encoders, lora):
            return encode_prompts(encoders, tokenizers, prompts, soft)

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        """One, or SDXL's two, by their names in the pipeline."""
        return {n: getattr(self.pipe, n) for n in TEXT_ENCODERS if getattr(self.pipe, n, None) is not None}

    def token_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Each prompt's tokens for the first text encoder, all of them, without start and end."""
        found = self.pipe.tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
        return [list(map(int, row)) for row in found]

    def prompt_features(self, prompts: Sequence[str]) -> PromptFeatures:
        """What the routers compare with the sources' captions."""
        tokens, vocabulary = self.token_ids(prompts), len(self.pipe.tokenizer)
        return PromptFeatures(self.encode_prompts(prompts).mean, tokens, vocabulary)

    def encode_negative(
        self, negative_prompt: str, count: int, lora: TextLora | LearningTextLora | None = None
    ) -> PromptEmbeds:
        """What the stock pipeline's unconditional rows are told: SDXL takes zeros for the empty prompt."""
        encoded = self.encode_prompts([negative_prompt] * count, lora=lora)
        if not negative_prompt and self.pipe.config.get("force_zeros_for_empty_prompt"):
            pooled = None if encoded.pooled is None else torch.zeros_like(encoded.pooled)
            return PromptEmbeds(torch.zeros_like(encoded.embeds), pooled, encoded.mean)
        return encoded

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B, C, h, w) of the VAE's posterior, unscaled, fp32 on the CPU."""
        pixels = torch.stack([pil_to_tensor(image.convert("RGB")) for image in images])
        pixels = (pixels.float() / 127.5 - 1).to(self.device, self.pipe.vae.dtype)
        posterior = self.pipe.vae.encode(pixels).latent_dist
        return posterior.mean.float().cpu(), posterior.std.float().cpu()

    def as_noise(self, predicted: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        """The noise that the UNet's predictions (..., B, C, h, w) of x_t (B, C, h, w) stand for."""
        if self.prediction_type == "epsilon":
            return predicted
        a = alpha_bar.to(predicted.dtype).reshape(-1, 1, 1, 1)
        return a.sqrt() * predicted + (1 - a).sqrt() * x_t  # v = sqrt(a) eps - sqrt(1 - a) x_0

    def alpha_bar(self, t: Tensor) -> Tensor:
        """Share of signal at timesteps t (B,), which need not be whole: log-SNR is interpolated."""
        table = self.alphas_cumprod.double()
        log_snr = table.log() - (1 - table).log()
        t = t.double().cpu().clamp(0, len(table) - 1)
        low = t.floor().long().clamp(max=len(table) - 2)
        return torch.lerp(log_snr[low], log_snr[low + 1], t - low).sigmoid()


def _device(device: str) -> str:
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _load_pipeline(model: str | Path, dtype: torch.dtype, variant: str) -> Any:
    path = shipped("nano") if str(model) == "nano" else Path(model)
    options: dict[str, Any] = {"dtype": dtype}
    if variant:
        options["variant"] = variant
    try:
        if path.is_file():
            return _load_single_file(path, options)
        if path.is_dir():
            if not (path / "model_index.json").is_file():
                raise BadInput(
                    f"{path} holds no model_index.json; a backbone folder is one that diffusers saved"
                )
            return DiffusionPipeline.from_pretrained(
                path, use_safetensors=True, local_files_only=True, **options
            )
        if path.suffix or str(model).count("/") != 1 or str(model).startswith((".", "/")):
            raise BadInput(
                f"backbone {model} does not exist; accepted: nano, a diffusers folder, a hub id, a .safetensors file"
            )
        return DiffusionPipeline.from_pretrained(str(model), use_safetensors=True, **options)
    except BadInput:
        raise
    except (OSError, ValueError) as error:
        raise BadInput(f"backbone {model} cannot be loaded: {_first_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' bars and notices: a missing safety checker is the folder's choice, not news."""
    levels = [(library, library.get_verbosity()) for library in (diffusers_logging, transformers_logging)]
    for library, _ in levels:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level in levels:
            library.set_verbosity(level)
            library.enable_progress_bar()


def _load_single_file(path: Path, options: dict[str, Any]) -> Any:
    if path.suffix != ".safetensors":
        raise BadInput(
            f"{path} is no safetensors file; pickled checkpoints are never opened: convert it first"
        )
    config = path.with_suffix("")  # configuration and tokenizer in a folder of the same name, for offline use
    if config.is_dir():
        options = {**options, "config": str(config), "local_files_only": True}
    kind = StableDiffusionXLPipeline if _is_sdxl(path) else StableDiffusionPipeline
    try:
        pipe = kind.from_single_file(str(path), **options)
    except OSError as error:
        if config.is_dir():
            raise
        raise BadInput(
            f"backbone {path} cannot be loaded: {_first_line(error)}; offline, its configuration and tokenizer "
            f"are read from a folder {config}, which is not there"
        ) from error
    except SingleFileComponentError as error:
        raise BadInput(f"{path} is no whole Stable Diffusion checkpoint: {_first_line(error)}") from error
    except NotImplementedError as error:  # what diffusers says when it moves a part that was not filled
        raise BadInput(f"{path} is no whole Stable Diffusion checkpoint: tensors are missing") from error
    for part, module in pipe.components.items():
        if isinstance(module, nn.Module):
            _check_complete(path, part, module)
    return pipe


def _check_complete(path: Path, part: str, module: nn.Module) -> None:
    missing = [name for name, tensor in module.state_dict().items() if tensor.is_meta]
    if missing:  # diffusers leaves what the file does not hold without data
        raise BadInput(
            f"{path} is no whole Stable Diffusion checkpoint: its {part} lacks {missing[0]} ({len(missing)} such)"
        )


def _is_sdxl(path: Path) -> bool:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise BadInput(f"{path} is no safetensors file: its header would be longer than the file")
        header = file.read(length)
    return b"conditioner.embedders.1" in header


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _digest(modules: Mapping[str, nn.Module], identity: str) -> str:
    """sha256 over every stored tensor rounded to fp16, with names that do not depend on the transformers version."""
    digest = hashlib.sha256(identity.encode())
    for name, tensor in sorted(_named_tensors(modules)):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float16).contiguous().numpy().data)
    return digest.hexdigest()


def _named_tensors(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    for part, module in modules.items():
        for name, tensor in module.state_dict().items():
            if not name.endswith("position_ids"):
                yield f"{part}.{name.replace('text_model.', '')}", tensor


def _architecture(config: Any) -> str:
    width = config.cross_attention_dim
    channels = "x".join(map(str, config.block_out_channels))
    known = {
        ("768", "320x640x1280x1280"): "sd1",
        ("1024", "320x640x1280x1280"): "sd2",
        ("2048", "320x640x1280"): "sdxl",
    }
    return known.get((str(width), channels), f"sd-{width}-{channels}")
