"""Stable Diffusion composed, at inference, from adapters that each source of data trained alone.

The method is one equation, in `compose.py`. Reading order for a newcomer: `compose`, `router`, `adapter`,
`backbone`, `composed_unet`, `train`, `generate`.

The public names below are imported on first use, since torch and diffusers take seconds to import.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from promptcdm.adapter import Adapter as Adapter
    from promptcdm.adapter import load_adapter as load_adapter
    from promptcdm.adapter import save_adapter as save_adapter
    from promptcdm.attribute import attribute as attribute
    from promptcdm.backbone import Backbone as Backbone
    from promptcdm.composed_unet import ComposedUNet as ComposedUNet
    from promptcdm.errors import PromptCDMError as PromptCDMError
    from promptcdm.export import export_adapter as export_adapter
    from promptcdm.forget import forget as forget
    from promptcdm.generate import Generation as Generation
    from promptcdm.generate import generate as generate
    from promptcdm.import_adapter import import_adapter as import_adapter
    from promptcdm.settings import AttributeSettings as AttributeSettings
    from promptcdm.settings import BackboneSettings as BackboneSettings
    from promptcdm.settings import GenerateSettings as GenerateSettings
    from promptcdm.settings import TrainSettings as TrainSettings
    from promptcdm.source import Source as Source
    from promptcdm.store import AdapterStore as AdapterStore
    from promptcdm.train import train_adapter as train_adapter
    from promptcdm.train_plan import TrainPlan as TrainPlan
    from promptcdm.train_plan import plan_training as plan_training
    from promptcdm.train_slices import train_source as train_source

__version__ = "0.1.0"

_HOMES = {
    "Adapter": "adapter",
    "AdapterStore": "store",
    "AttributeSettings": "settings",
    "Backbone": "backbone",
    "BackboneSettings": "settings",
    "ComposedUNet": "composed_unet",
    "GenerateSettings": "settings",
    "Generation": "generate",
    "PromptCDMError": "errors",
    "Source": "source",
    "TrainPlan": "train_plan",
    "TrainSettings": "settings",
    "attribute": "attribute",
    "export_adapter": "export",
    "forget": "forget",
    "generate": "generate",
    "import_adapter": "import_adapter",
    "load_adapter": "adapter",
    "save_adapter": "adapter",
    "plan_training": "train_plan",
    "train_adapter": "train",
    "train_source": "train_slices",
}

__all__ = [*sorted(_HOMES), "__version__"]


def __getattr__(name: str) -> object:
    """Import a public name on first use, and keep it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'promptcdm' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"promptcdm.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """Keep `promptcdm.generate` the function: importing the module of that name would replace it."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
