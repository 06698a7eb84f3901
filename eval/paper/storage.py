"""What a source costs in storage: the bytes of its LoRA and, beside it, of a soft prompt.

raw/storage.json
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from paper.adapters import file_name, store_of
from paper.stage import Stage
from paper.units import once
from promptcdm.adapter import LORA, PROMPT, save_adapter
from promptcdm.source_statistics import ROUTER
from promptcdm.train import train_adapter


def storage(stage: Stage) -> dict[str, Any]:
    """Bytes of one source's files, the mean over sources, and those of the monoliths and of the backbone."""
    return dict(once(stage.raw / "storage.json", lambda: _storage(stage)))


def _storage(stage: Stage) -> dict[str, Any]:
    root = store_of(stage.out, 0).root
    own = {
        name: (root / file_name(name) / LORA).stat().st_size for name in (*stage.names, *stage.plan.monoliths)
    }
    # Its size does not depend on what it has learned: one step is enough.
    settings = replace(stage.plan.training, kind="prompt", steps=1, batch_size=1, deterministic=False)
    source = stage.sources[stage.names[0]]
    folder = stage.out / "work" / "soft-prompt"
    if not (folder / PROMPT).is_file():
        save_adapter(train_adapter(source, stage.backbone, settings), folder)
    weights = sum(p.numel() for p in stage.backbone.unet.parameters())
    return {
        "lora_bytes": own,
        "soft_prompt_bytes": (folder / PROMPT).stat().st_size,
        "router_bytes": {name: _bytes(root / name / ROUTER) for name in stage.names},
        "unet_parameters": weights,
    }


def _bytes(path: Path) -> int:
    return path.stat().st_size
