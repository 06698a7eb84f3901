"""A ledger over many pictures: whole shares a picture, what they add up to, and the licences and attributions owed.

The same pictures, adapters and settings give the same bytes: no time, path or host is in it, pictures stand in the
order of their names and digests, and a picture's shares sum to `units` exactly (largest remainders).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from promptcdm.adapter_record import AdapterRecord
from promptcdm.attribute import Attribution
from promptcdm.errors import BadInput
from promptcdm.shares import UNITS, whole_shares

FORMAT = 1
STATEMENT = (
    "A share is an accounting rule that this file states, applied to what models computed. It is no proof that a "
    "source influenced a picture, and no measure of what a licence asks for: what a licence asks is owed in full, "
    "however small the share."
)
RULES = {
    "weights": "mean weight of each source over the denoising steps, from the picture's record",
    "statistics": "posterior of the sources' Gaussians at the clean latent, equally likely before",
    "palette": (
        "mean over the drawn pixels of each source's share in the pixel's colour, by how often the source's training "
        "pictures have it; all colours even for what is left"
    ),
    "denoising": (
        "Shapley values of log(p_0 + sum of p_i) over sets of sources, densities from denoising errors, times the "
        "posterior that the picture is any source's"
    ),
    "leave-one-out": "growth of -log density when the source is left out of the composition, where it grows",
}
REST = "unattributed"


@dataclass(frozen=True)
class Entry:
    """One picture."""

    file: str  # its name, without folders
    sha256: str  # of the file
    attribution: Attribution


def check_made_with(file: str, record: Mapping[str, Any], adapters: Sequence[AdapterRecord]) -> None:
    """Raise BadInput where the record of a picture names another adapter of a source than the one in `adapters`.

    A source that was retrained is another party to the account: its older version can be named instead.
    """
    made_with = {each["source"]: each["sha256"] for each in record.get("adapters", ())}
    for adapter in adapters:
        sha256 = made_with.get(adapter.source, adapter.sha256)
        if sha256 != adapter.sha256:
            raise BadInput(
                f"{file}: made with {adapter.source} {sha256[:12]}, the store has {adapter.sha256[:12]}; "
                f"allow {adapter.source}@{sha256[:12]} if the store still has it"
            )


def ledger(
    entries: Sequence[Entry],
    adapters: Sequence[AdapterRecord],
    settings: Mapping[str, Any],
    *,
    units: int = UNITS,
) -> dict[str, Any]:
    """The ledger as JSON, over the allowed sources' `adapters`; `settings` is told as it is.

    Raises BadInput where there is no picture, methods are mixed, or an attribution names another source.
    """
    methods = sorted({entry.attribution.method for entry in entries})
    if len(methods) != 1:
        raise BadInput(f"a ledger of methods {methods}; it takes one or more pictures of one method")
    known = {record.source for record in adapters}
    pictures: list[dict[str, Any]] = []
    for entry in sorted(entries, key=lambda e: (e.file, e.sha256)):
        unknown = sorted(set(entry.attribution.amounts) - known)
        if unknown:
            raise BadInput(
                f"{entry.file}: attributed to {unknown[0]}, whose adapter is not among those given"
            )
        shares = whole_shares({**entry.attribution.amounts, "": entry.attribution.rest}, units)
        rest = shares.pop("")
        pictures.append({"file": entry.file, "sha256": entry.sha256, "shares": shares, REST: rest})
    return {
        "format": FORMAT,
        "statement": STATEMENT,
        "method": methods[0],
        "rule": RULES[methods[0]],
        "settings": dict(settings),
        "units": units,
        "pictures": pictures,
        "totals": {
            "units": units * len(pictures),
            "shares": {name: sum(p["shares"].get(name, 0) for p in pictures) for name in sorted(known)},
            REST: sum(p[REST] for p in pictures),
        },
        "owed": [_owed(record, pictures) for record in sorted(adapters, key=lambda r: r.source)],
    }


def _owed(record: AdapterRecord, pictures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the source's licence says, and how many pictures have a share of it."""
    return {
        "source": record.source,
        "adapter": record.sha256,
        "license": record.license,
        "author": record.author,
        "origin": record.origin,
        "attribution": record.attribution,
        "pictures": sum(picture["shares"].get(record.source, 0) > 0 for picture in pictures),
    }


def table(made: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of text: a header, a row for each source, and what is unattributed."""
    totals = made["totals"]
    rows: list[tuple[str, ...]] = [("source", "pictures", "share", "units", "license", "attribution owed")]
    for owed in made["owed"]:
        units = totals["shares"][owed["source"]]
        facts = (owed["license"], owed["attribution"] if owed["pictures"] else "none: no share")
        rows.append((owed["source"], str(owed["pictures"]), _percent(units, totals), str(units), *facts))
    rows.append((REST, "", _percent(totals[REST], totals), str(totals[REST]), "", ""))
    return rows


def _percent(units: int, totals: Mapping[str, Any]) -> str:
    return f"{100 * units / totals['units']:.1f} %"
