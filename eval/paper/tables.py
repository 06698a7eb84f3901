"""Tables from the raw files alone: every system's figures with intervals, and each claim beside its goal.

tables/systems.csv    tables/strata.csv    tables/ruler.csv    tables/claims.csv
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paper.adapters import MONOLITH
from paper.compare import Estimate, Scores, difference, gain, mean
from paper.plan import STRATA
from paper.stage import read_csv, write_csv
from paper.systems import MONOLITHS, SYSTEMS
from paper.tifa_scores import REAL, by_prompt

Rows = Sequence[Mapping[str, str]]
ONLY_SOURCES = ("withheld", "joined")  # what the backbone cannot do alone
GROUPS = {"all": STRATA, **{stratum: (stratum,) for stratum in STRATA}, "sources alone teach": ONLY_SOURCES}


class Raw:
    """The raw files of a run."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.choice = json.loads((out / "raw" / "choice.json").read_text(encoding="utf-8"))
        self.tifa, self.fidelity = self.csv("tifa"), self.csv("fidelity")
        self.pictures, self.ruler = self.csv("pictures"), self.csv("ruler")
        self.forgetting = self.csv("forgetting")
        self.judges = list(dict.fromkeys(row["judge"] for row in self.tifa))
        self.judge = self.judges[-1]  # whose scores are told: an earlier one may have chosen
        told = {row["system"] for row in self.tifa if row["part"] == "test"}
        self.systems = [system.name for system in SYSTEMS if system.name in told]

    def csv(self, name: str) -> list[dict[str, str]]:
        """The rows of a raw file; none where it was not made."""
        path = self.out / "raw" / f"{name}.csv"
        return read_csv(path) if path.is_file() else []

    def json(self, name: str) -> dict[str, Any]:
        """A raw JSON file; {} where it was not made."""
        path = self.out / "raw" / f"{name}.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    def ids(self, judge: str, strata: Sequence[str]) -> list[str]:
        """The test prompts of some strata whose questions a judge can answer: one may not know every noun."""
        own = (
            r
            for r in self.tifa
            if (r["judge"], r["part"]) == (judge, "test") and r["stratum"] in strata and r["system"] != REAL
        )
        return list(dict.fromkeys(row["prompt"] for row in own))

    def scores(self, judge: str, system: str, strata: Sequence[str], what: str = "hard") -> Scores:
        """(S, P) of a system on the test prompts of some strata."""
        return by_prompt(self.tifa, judge, system, self.ids(judge, strata), what)


def make_tables(out: Path) -> dict[str, list[dict[str, Any]]]:
    """All tables, written and returned."""
    raw = Raw(out)
    tables = {
        "systems": [system_row(raw, name) for name in raw.systems],
        "strata": strata_rows(raw),
        "ruler": ruler_rows(raw),
        "claims": claims(raw),
    }
    for name, rows in tables.items():
        if rows:
            write_csv(out / "tables" / f"{name}.csv", rows)
    return tables


def strata_rows(raw: Raw) -> list[dict[str, Any]]:
    """TIFA of every judge, system and stratum: raw, corrected for chance and for the judge, and beside the monolith."""
    rows = []
    for judge in raw.judges:
        for group, strata in GROUPS.items():
            ids = raw.ids(judge, strata)
            reference = by_prompt(raw.tifa, judge, raw.choice["monolith"], ids)
            for name in raw.systems:
                own = by_prompt(raw.tifa, judge, name, ids)
                if len(own) and ids:
                    facts = {
                        "judge": judge,
                        "stratum": group,
                        "system": name,
                        "prompts": len(ids),
                        "seeds": len(own),
                    }
                    rows.append(facts | _tifa(raw, judge, ids, own, reference))
    return rows


def _tifa(raw: Raw, judge: str, ids: Sequence[str], own: Scores, reference: Scores) -> dict[str, Any]:
    chance = float(_of_prompts(raw, judge, ids, "chance").mean())
    row = mean(own).columns("tifa") | {"chance": chance, "corrected": (own.mean() - chance) / (1 - chance)}
    real = _of_prompts(raw, judge, ids, "hard", REAL)
    row["real"] = float(real.mean()) if len(real) == len(ids) else math.nan
    row["judge_corrected"] = (float(own.mean()) - chance) / (row["real"] - chance)
    if len(reference):
        row |= difference(own, reference).columns("minus_monolith")
        row |= gain(own, reference).columns("gain")
    return row


def _of_prompts(raw: Raw, judge: str, ids: Sequence[str], what: str, system: str = "") -> Scores:
    """A value of each prompt that has one, whichever system it stands at."""
    found = {
        row["prompt"]: float(row[what])
        for row in raw.tifa
        if row["judge"] == judge and (row["system"] == system if system else row["system"] != REAL)
    }
    return np.asarray([found[id] for id in ids if id in found])


def system_row(raw: Raw, name: str) -> dict[str, Any]:
    """One system: cost, TIFA by the last judge, fidelity by every tower, and its router."""
    drawn = [
        r for r in raw.pictures if r["system"] == name and not r["without"] and r["prompt"].startswith("t-")
    ]
    row: dict[str, Any] = {
        "system": name,
        "rows": _mean(drawn, "rows"),
        "core_seconds": _mean(drawn, "seconds"),
    }
    for group in ("all", "withheld", "joined"):
        own = raw.scores(raw.judge, name, GROUPS[group])
        row |= mean(own).columns(f"tifa {group}") if own.size else {}
        for key in (f"tifa {group}", f"tifa {group}_low", f"tifa {group}_high"):
            row.setdefault(key, math.nan)
    for tower in dict.fromkeys(r["tower"] for r in raw.fidelity):
        found = [r for r in raw.fidelity if r["tower"] == tower and r["system"] == name]
        for key in ("kid", "kid_minus", "kid_minus_low", "kid_minus_high", "fd_ratio", "precision", "recall"):
            row[f"{tower} {key}"] = _mean(found, key)
    row["entropy_first"], row["entropy_last"] = _mean(drawn, "entropy_first"), _mean(drawn, "entropy_last")
    row["router_loss"] = _mean([r for r in raw.ruler if r["part"] == "test"], f"loss {name}")
    return row


def ruler_rows(raw: Raw) -> list[dict[str, Any]]:
    """Denoising error of every system over that of the monolith, at each noise level and over all, by concept."""
    test = [row for row in raw.ruler if row["part"] == "test"]
    systems = [key.removeprefix("error ") for key in (test[0] if test else {}) if key.startswith("error ")]
    rows = []
    for level in [*dict.fromkeys(row["level"] for row in test), "all"]:
        own = [row for row in test if level in (row["level"], "all")]
        by = {name: _by_concept(own, f"error {name}") for name in systems}
        reference = by[raw.choice["monolith"] if raw.choice["monolith"] in by else MONOLITH]
        log_snr = _mean(own, "log_snr") if level != "all" else math.nan
        for name in systems:
            facts = {"level": level, "log_snr": log_snr, "system": name, "error": float(by[name].mean())}
            rows.append({**facts, **gain(by[name], reference).columns("over_monolith")})
    return rows


def _by_concept(rows: Rows, key: str) -> Scores:
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        found[row["concept"]].append(float(row[key]))
    return np.asarray([[float(np.mean(values)) for values in found.values()]])


def claims(raw: Raw) -> list[dict[str, Any]]:
    """Each claim with its goal, what was found, its interval and whether the goal was reached."""
    judge, composed, monolith = raw.judge, raw.choice["composed"], raw.choice["monolith"]
    rows = [_headroom(raw, judge, monolith)]
    for tower in dict.fromkeys(row["tower"] for row in raw.fidelity):
        own = [r for r in raw.fidelity if (r["tower"], r["system"]) == (tower, composed)]
        rows.append(_kid_claim(tower, own, f"{composed} minus {monolith}"))
        ratio = Estimate(*(_mean(own, f"fd_ratio{end}") for end in ("", "_low", "_high")))
        rows.append(_claim(f"Fréchet excess ratio ({tower})", "<= 1.00", ratio, ratio.value <= 1))
    pairs: dict[tuple[str, str], list[Mapping[str, str]]] = defaultdict(list)  # of all training seeds
    for row in raw.csv("fidelity_pairs"):
        if row["system"] == composed:
            pairs[row["tower"], row["reference"]].append(row)
    rows += [_kid_claim(tower, own, f"{composed} minus {other}") for (tower, other), own in pairs.items()]
    return rows + _tifa_claims(raw) + _forgetting_claims(raw) + _attribution_claim(raw)


def _kid_claim(tower: str, own: Rows, systems: str) -> dict[str, Any]:
    found = Estimate(*(_mean(own, f"kid_minus{end}") * 1000 for end in ("", "_low", "_high")))
    return _claim(f"KID x 1000 ({tower}), {systems}", "not above 0", found, found.low <= 0)


def _tifa_claims(raw: Raw) -> list[dict[str, Any]]:
    """Each kind draws joined prompts as was chosen for it; beside that, both without regions."""
    primary = {kind: raw.choice[kind] for kind in ("composed", "monolith")}
    used = raw.choice["joined"]
    ours, theirs = (_as_used(raw, primary[kind], used[kind]) for kind in ("composed", "monolith"))
    if not (ours.size and theirs.size):
        return []
    named = f"withheld ({' over '.join(primary.values())}) and joined ({' over '.join(used.values())})"
    more = gain(ours, theirs)
    reached = more.value >= 0.2 and more.low > 0.1433
    rows = [_claim(f"TIFA gain, {named}", ">= 0.20, interval above 0.1433", more, reached)]
    apart = difference(ours, theirs)
    rows.append(_claim("the same in points", "above 0", apart, apart.low > 0))
    chance = _of_prompts(raw, raw.judge, raw.ids(raw.judge, ONLY_SOURCES), "chance").mean()
    more = gain((ours - chance) / (1 - chance), (theirs - chance) / (1 - chance))
    rows.append(_claim("the same, chance-corrected gain", ">= 0.20", more, more.value >= 0.2))
    bare = _as_used(raw, "backbone", "backbone")
    if bare.size:
        alone = difference(ours, bare)
        rows.append(_claim("the same, in points over the backbone alone", "above 0", alone, alone.low > 0))
    for name in [name for name in MONOLITHS if name in raw.systems and name != primary["monolith"]]:
        more = gain(ours, _as_used(raw, name, name))
        rows.append(_claim(f"the same gain over {name}", ">= 0.20", more, more.value >= 0.2))
    for stratum in ONLY_SOURCES:
        own = [raw.scores(raw.judge, primary[kind], (stratum,)) for kind in ("composed", "monolith")]
        if all(each.size for each in own):
            more, what = (
                gain(own[0], own[1]),
                f"TIFA gain, {stratum} alone, {' over '.join(primary.values())}",
            )
            rows.append(_claim(what, "above 0", more, more.low > 0))
    return rows


def _as_used(raw: Raw, primary: str, joined: str) -> Scores:
    """(S, P) of withheld and joined prompts, the joined ones as this kind draws them; (0, 0) where one is missing."""
    parts = [raw.scores(raw.judge, primary, ("withheld",)), raw.scores(raw.judge, joined, ("joined",))]
    if not all(part.size for part in parts):
        return np.zeros((0, 0))
    seeds = min(len(part) for part in parts)
    return np.concatenate([part[:seeds] for part in parts], axis=1)


def _headroom(raw: Raw, judge: str, monolith: str) -> dict[str, Any]:
    own, reference = (raw.scores(judge, name, ("withheld",)) for name in ("oracle source", monolith))
    words = "headroom: oracle source minus monolith, TIFA on withheld concepts"
    if not (own.size and reference.size):
        return _claim(words, ">= 0.05", Estimate(math.nan, math.nan, math.nan), False)
    apart = difference(own, reference)
    return _claim(words, ">= 0.05", apart, apart.value >= 0.05)


def _forgetting_claims(raw: Raw) -> list[dict[str, Any]]:
    rows, told = [], raw.json("forget_picture")
    for slices, row in told.get("by_slices", {}).items():
        found = Estimate(row["cheaper"], math.nan, math.nan)
        bytes_are = "the same bytes as never" if row["equal_to_never"] else "not the same bytes (see results)"
        words = (
            f"forgetting one picture, times cheaper than the monolith again, {slices} slice(s), {bytes_are}"
        )
        reached = row["equal_to_never"] and row["cheaper"] >= told["sources"]
        rows.append(_claim(words, f">= {told['sources']} (sources)", found, reached))
    if raw.forgetting:
        equal = all(r["files_equal"] == r["pictures_equal"] == "True" for r in raw.forgetting)
        seconds = Estimate(_mean(raw.forgetting, "forget_milliseconds") / 1000, math.nan, math.nan)
        rows.append(
            _claim(
                "forgetting a source, seconds; bytes as if it had never been there",
                "equal",
                seconds,
                equal,
            )
        )
        ratio = [key for key in raw.forgetting[0] if key.endswith("fd_ratio")]
        for key in ratio:
            after = [float(row[key]) for row in raw.forgetting if row[key] != ""]
            change = Estimate(max(after, default=math.nan) - 1, math.nan, math.nan)
            words = f"largest change of the Fréchet excess when a source is forgotten ({key.split()[0]})"
            rows.append(_claim(words, "<= 0.01", change, change.value <= 0.01))
    return rows


def _attribution_claim(raw: Raw) -> list[dict[str, Any]]:
    found = raw.json("attribution")
    if not found:
        return []
    top = Estimate(found["value"], found["low"], found["high"])
    return [_claim("attribution of held-out pictures, top-1", ">= 0.90", top, top.value >= 0.9)]


def _claim(what: str, goal: str, found: Estimate, reached: bool) -> dict[str, Any]:
    """A row; what the raw files do not tell, as where noise forbids a ratio, is neither reached nor missed."""
    return {
        "claim": what,
        "goal": goal,
        "found": found.value,
        "low": found.low,
        "high": found.high,
        "reached": "not measured" if math.isnan(found.value) else ("yes" if reached else "no"),
    }


def _mean(rows: Rows, key: str) -> float:
    values = [float(row[key]) for row in rows if row.get(key) not in ("", None)]
    return float(np.mean(values)) if values else math.nan
