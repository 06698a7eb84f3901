"""`adapter.json`: what an adapter is, what it fits, what made it, and the digest of its tensors."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from promptcdm.errors import AdapterMismatch
from promptcdm.settings import Kind, Unconditional, settings_of_result

FORMAT = 1
# What the records of all slices of a source must say alike.
OF_ALL_SLICES = (
    *("source", "kind", "unconditional", "trigger", "backbone", "settings"),
    *("license", "author", "origin", "attribution"),
)
# One line, so that tables, cards and logs made from a record cannot be forged by one.
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$")]

Model = TypeVar("Model", bound=BaseModel)


class BackboneRecord(BaseModel):
    """The frozen model an adapter belongs to; `name` is a hub id or a folder's own name, never a path."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(pattern=r"^[^/\\\x00-\x1f]+(/[^/\\\x00-\x1f]+)?$", max_length=200)
    digest: str
    architecture: str


class AdapterRecord(BaseModel):
    """The content of adapter.json. Unknown keys are errors; no time, path or host is in it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1] = 1
    source: str
    kind: Kind
    unconditional: Unconditional
    trigger: Line
    backbone: BackboneRecord
    settings: dict[str, str | int | float | bool]
    sha256: str  # adapter_digest of the tensors
    source_digest: str  # merkle_root of manifest.json; empty where there is none
    items: int = Field(ge=0)  # pictures it was trained on; 0 where unknown
    license: Line  # SPDX identifier, or NOASSERTION
    author: Line
    origin: Line
    attribution: Line
    versions: dict[str, str]  # of the libraries that made it
    imported_from: Line = ""  # file name or hub id of a LoRA of another tool's making
    device: Line = ""  # what it was trained on (device_class.py); empty where unknown

    @property
    def slices(self) -> int:
        """In how many slices the source was trained (slices.py); 1 is one whole."""
        k = self.settings.get("slices", 1)
        return k if isinstance(k, int) else 1

    def said(self, key: str) -> Any:
        """What it says under a key, to compare: a setting that it does not know of yet had its default."""
        return settings_of_result(self.settings) if key == "settings" else getattr(self, key)


def parse_record(value: Any, where: str) -> AdapterRecord:
    """A record from JSON. Raises AdapterMismatch with the first thing that is wrong."""
    if not isinstance(value, dict):
        raise AdapterMismatch(f"{where}: must be a JSON object")
    if value.get("format") != FORMAT:
        raise AdapterMismatch(
            f"{where}: format {value.get('format')!r:.40} is unknown; this version reads format {FORMAT}"
        )
    return validated(AdapterRecord, value, where)


def validated(model: type[Model], value: Any, where: str) -> Model:
    """`value` as a `model`. Raises AdapterMismatch naming the key, in one line."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(ascii(part).strip("'") for part in first["loc"])[:100]
        if first["type"] == "extra_forbidden":
            known = ", ".join(model.model_fields)
            raise AdapterMismatch(f"{where}: unknown key {key}; known are {known}") from None
        raise AdapterMismatch(f"{where}: {key}: {first['msg']}") from None
