"""Copies of an adapter for other tools. Each is noted in the store, so that forgetting can say what it cannot reach.

    diffusers   pytorch_lora_weights.safetensors                    pipe.load_lora_weights(DIR)
    kohya       NAME.safetensors                                    A1111, ComfyUI, sd-scripts
    peft        adapter_model.safetensors, adapter_config.json      PeftModel.from_pretrained(unet, DIR)

A soft prompt goes beside it as learned_embeds.safetensors, in textual inversion's format. What is written has the
strength of the store's adapter: alpha is r.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

from torch import Tensor

from promptcdm.adapter import Adapter, write_card, write_diffusers, write_kohya, write_prompt
from promptcdm.errors import BadInput
from promptcdm.lora_format import PEFT_CONFIG, PEFT_FILE, lora_modules
from promptcdm.settings import ExportFormat
from promptcdm.store import AdapterStore
from promptcdm.tensorfile import write_json, write_tensors


def export_adapter(name: str, *, store: AdapterStore, format: ExportFormat, out: Path) -> list[Path]:
    """Write source `name` for other tools into the folder `out`, and note it in the store; returns the files.

    Raises UnknownSource, AdapterMismatch where the adapter is not sound, and BadInput for an unknown format or a folder
    that holds files already.
    """
    if format not in get_args(ExportFormat):
        raise BadInput(f"format {format!r} is unknown; accepted: {', '.join(get_args(ExportFormat))}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} is not an empty folder; an export gets a folder of its own")
    adapter = store.load(name)
    if adapter.slices:
        raise BadInput(
            f"{name} is in {adapter.record.slices} slices, whose predictions are added: no other tool's file can say "
            "that; a LoRA of one slice alone is in its folder slice-N"
        )
    if format == "peft" and adapter.text_lora:
        raise BadInput(
            f"{name} adapts the text encoder, whose layers PEFT knows by names that differ between versions of "
            "transformers; export it as diffusers or kohya"
        )
    if not adapter.lora and not adapter.prompt:
        raise BadInput(
            f"{name} is the backbone itself, without weights: there is nothing that another tool could load"
        )
    # Noted before anything is written: a copy that nobody knows of is worse than a note without a copy.
    note = {"source": name, "sha256": adapter.sha256, "format": format, "place": str(out.resolve())}
    store.append_export(json.dumps(note, sort_keys=True))
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    if adapter.lora and format == "peft":
        written += _peft(adapter, out)
    elif adapter.lora:
        written.append((write_kohya if format == "kohya" else write_diffusers)(adapter, out))
    if adapter.prompt:
        written.append(write_prompt(adapter, out))
    return [*written, write_card(adapter, out)]


def _peft(adapter: Adapter, out: Path) -> list[Path]:
    modules = {name.removeprefix("unet."): pair for name, pair in lora_modules(adapter.unet_lora).items()}
    tensors = {
        f"base_model.model.{name}.lora_{half}.weight": tensor
        for name, pair in modules.items()
        for half, tensor in zip("AB", pair, strict=True)
    }
    write_tensors(out / PEFT_FILE, tensors, {"format": "pt"})
    write_json(out / PEFT_CONFIG, _peft_config(modules))
    return [out / PEFT_FILE, out / PEFT_CONFIG]


def _peft_config(modules: dict[str, tuple[Tensor, Tensor]]) -> dict[str, object]:
    """PEFT's settings for these layers, alpha = r in each."""
    ranks = {name: len(a) for name, (a, _) in modules.items()}
    rank = max(ranks.values())
    other = {name: r for name, r in ranks.items() if r != rank}
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": other,
        "alpha_pattern": other,
        "target_modules": sorted(modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
