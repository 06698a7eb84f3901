"""What a training learns: fp32 parameters of a LoRA and a soft prompt, acting in the frozen backbone, and read out.

    lora.<module>.lora_A, .lora_B      of the UNet's LoRA
    text.<layer>.lora_A, .lora_B       of the text encoders', layers as in text_names.py
    prompt.<text encoder>              of the soft prompt, (n, D)

A LoRA acts with the strength alpha / rank, B A x alpha / r; what is read out has it folded into B.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from promptcdm import lora
from promptcdm.backbone import Backbone
from promptcdm.batch import OwnWords
from promptcdm.device_class import computes_in_bf16
from promptcdm.keyed_random import keyed_generator
from promptcdm.settings import TrainSettings
from promptcdm.text_lora import LearningTextLora, text_target_layers
from promptcdm.text_names import TEXT_ENCODERS

Parameters = dict[str, nn.Parameter]
LORA_NAME = "adapter_in_training"
_TEXT, _PROMPT = "text.", "prompt."


@contextmanager
def trainable(backbone: Backbone, settings: TrainSettings, source_digest: str) -> Iterator[Parameters]:
    """The new adapter's parameters, acting in the UNet until the block ends. The caller holds the UNet's lock."""
    try:
        yield _new_parameters(backbone, settings, source_digest)
    finally:
        lora.remove(backbone.unet, LORA_NAME)


@contextmanager
def checkpointing(backbone: Backbone, on: bool) -> Iterator[None]:
    """Where `on`, the UNet's blocks run again in the backward of the block, and their activations are not kept."""
    again = on and not backbone.unet.is_gradient_checkpointing
    try:
        if again:
            backbone.unet.enable_gradient_checkpointing()
        yield
    finally:
        if again:
            backbone.unet.disable_gradient_checkpointing()


def own_words(parameters: Parameters, backbone: Backbone, settings: TrainSettings) -> OwnWords:
    """How the adapter in training reads: its soft prompt and its LoRA of the text encoders, where it has them."""
    soft = {n.removeprefix(_PROMPT): p for n, p in parameters.items() if n.startswith(_PROMPT)}
    if not settings.train_text_encoder:
        return OwnWords(soft)
    layers = text_target_layers(backbone.text_encoders, settings.targets)
    pairs = [
        (layer, (parameters[f"{_TEXT}{name}.lora_A"], parameters[f"{_TEXT}{name}.lora_B"]))
        for name, layer in layers.items()
    ]
    return OwnWords(soft, LearningTextLora(pairs, settings.lora_scale))


def read_out(parameters: Parameters, backbone: Backbone, settings: TrainSettings) -> dict[str, Tensor]:
    """The LoRA as it is now, of UNet and text encoders: fp32 copies on the CPU by the keys of lora_format."""
    tensors = lora.read_out(backbone.unet, LORA_NAME)
    for name, parameter in parameters.items():
        if name.startswith(_TEXT):
            scale = settings.lora_scale if name.endswith(".lora_B") else 1.0
            tensors[f"{name.removeprefix(_TEXT)}.weight"] = lora.folded(parameter, scale)
    return tensors


def new_optimizer(parameters: Parameters, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW, a group each for A and B of the LoRA and for the soft prompt; `rate` is its rate before the schedule.

    Few groups, for on a GPU the parameters of a group are updated together, by one kernel.
    """
    rate = settings.learning_rate
    # B starts at zero and decides how far the output moves, A only where to; embeddings move in larger steps.
    rates = {".lora_A": rate, ".lora_B": settings.loraplus_lr_ratio * rate, _PROMPT: 10 * rate}
    of_part = {part: [p for n, p in parameters.items() if part in n] for part in rates}
    groups = [{"params": own, "rate": rates[part], "lr": 0.0} for part, own in of_part.items() if own]
    on_gpu = all(p.is_cuda for p in parameters.values())
    return torch.optim.AdamW(groups, weight_decay=1e-2, fused=on_gpu or None)


def _new_parameters(backbone: Backbone, settings: TrainSettings, source_digest: str) -> Parameters:
    """Fresh parameters, whose random numbers are keyed by the seed and the source alone."""
    generator = keyed_generator(f"{settings.seed} {source_digest} -1")
    parameters: Parameters = {}
    if "prompt" in settings.kind:
        for name in (n for n in TEXT_ENCODERS if n in backbone.text_encoders):
            encoder: Any = backbone.text_encoders[name]
            table = encoder.get_input_embeddings().weight
            start = _normal((settings.prompt_tokens, table.shape[1]), generator)
            parameters[f"{_PROMPT}{name}"] = nn.Parameter(
                (start * table.float().std().cpu()).to(backbone.device)
            )
    if "lora" in settings.kind:
        names = lora.target_modules(backbone.unet, settings.targets)
        lora.new_layers(backbone.unet, LORA_NAME, dict.fromkeys(names, settings.rank), settings.lora_scale)
        lora.activate(backbone.unet, LORA_NAME, trainable=True)
        for name, layer in lora.lora_layers(backbone.unet):
            a, b = layer.lora_A[LORA_NAME].weight, layer.lora_B[LORA_NAME].weight
            a.data.copy_(_random_a(a.shape, generator))
            b.data.zero_()
            parameters[f"lora.{name}.lora_A"], parameters[f"lora.{name}.lora_B"] = a, b
        if backbone.dtype == torch.bfloat16 and computes_in_bf16(settings.mixed_precision, backbone.device):
            lora.compute_in_bf16(backbone.unet, LORA_NAME)
    if settings.train_text_encoder:
        for name, layer in text_target_layers(backbone.text_encoders, settings.targets).items():
            out, width = layer.get_parameter("weight").shape
            a = _random_a(torch.Size((settings.rank, width)), generator)
            parameters[f"{_TEXT}{name}.lora_A"] = nn.Parameter(a.to(backbone.device))
            parameters[f"{_TEXT}{name}.lora_B"] = nn.Parameter(
                torch.zeros(out, settings.rank, dtype=torch.float32, device=backbone.device)
            )
    return parameters


def _random_a(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """As PEFT draws a new A."""
    bound = 1 / math.sqrt(shape[1:].numel())
    return (torch.rand(shape, generator=generator, dtype=torch.float32) * 2 - 1) * bound


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float32)
