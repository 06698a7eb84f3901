"""What was found of memorization and leakage: as rows of text, as lines to read them by, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from promptcdm.membership import Membership
from promptcdm.nearest import Likeness, Share
from promptcdm.separation import FALSE_ALARMS
from promptcdm.settings import LeakageSettings
from promptcdm.tensorfile import write_json
from promptcdm.training_neighbours import TrainingNeighbours

Table = list[tuple[str, ...]]
GROUPS = {
    "training": "training, to one another",
    "held_out": "held out",
    "switched_on": "generated, source on",
    "switched_off": "generated, source off",
}
SCORES = {
    "loss": "error",
    "calibrated": "error against the backbone's",
    "blind": "backbone's error (blind)",
    "text_noise": "text-conditional noise",
}


@dataclass(frozen=True)
class NeighbourFacts:
    """Neighbours with what they depend on."""

    found: TrainingNeighbours
    features: Mapping[str, object]
    training_sha256: Mapping[str, str]  # of each source's folder
    generated_sha256: str
    pictures: int
    without_record: int  # left out
    closest_files: tuple[tuple[str, str, str], ...]  # generated, source, training


@dataclass(frozen=True)
class MembershipFacts:
    """Membership of each adapter, and of the positive control, with what they depend on."""

    found: tuple[Membership, ...]
    control: Membership | None
    left_out: tuple[str, ...]  # adapters without pictures
    backbone: str  # digest


@dataclass(frozen=True)
class LeakageReport:
    """Either part is None where it was not asked for."""

    neighbours: NeighbourFacts | None
    membership: MembershipFacts | None
    settings: LeakageSettings
    versions: Mapping[str, str]

    def tables(self) -> list[Table]:
        """Rows of text, each table with its header first."""
        tables = []
        if self.neighbours is not None:
            tables.append(_likeness_table(self.neighbours))
            if self.neighbours.found.off is not None:
                tables.append(_off_table(self.neighbours))
            tables.append(_closest_table(self.neighbours))
        if self.membership is not None:
            tables += [_membership_table(self.membership), _text_noise_table(self.membership)]
        return tables

    def guidance(self) -> list[str]:
        """What a reader must know of these numbers."""
        lines = []
        if self.neighbours is not None:
            lines.append(
                "Read generated beside held out: real pictures that were never trained on are near to some too. No "
                "similarity proves or rules out a copy; look at the closest pairs."
            )
            if self.neighbours.without_record:
                lines.append(
                    f"{self.neighbours.without_record} generated files have no record and are left out."
                )
        if self.membership is not None:
            lines += _membership_guidance(self.membership)
        return lines

    def record(self) -> dict[str, object]:
        """All of it as JSON."""
        record: dict[str, object] = {
            "settings": asdict(self.settings),
            "versions": dict(self.versions),
            "guidance": self.guidance(),
        }
        if self.neighbours is not None:
            facts = asdict(self.neighbours)
            closest = [
                {"generated": made, "source": source, "training": trained}
                for made, source, trained in facts.pop("closest_files")
            ]
            for named, pair in zip(closest, facts["found"].pop("closest"), strict=True):
                named |= {"similarity": pair["similarity"], "allowed": pair["allowed"]}
            record["neighbours"] = {**facts.pop("found"), **facts, "closest": closest}
        if self.membership is not None:
            record["membership"] = asdict(self.membership) | {"false_alarms": FALSE_ALARMS}
        return record

    def save(self, out: Path) -> Path:
        """Write the record to a JSON file."""
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, self.record())
        return out


def _likeness_table(facts: NeighbourFacts) -> Table:
    rows: Table = [
        ("nearest training picture", "pictures", "n", "mean", "95th", "near", "95 %", "closer", "95 %")
    ]
    for name, groups in facts.found.sources.items():
        for key, words in GROUPS.items():
            found: Likeness | None = getattr(groups, key)
            if found is not None:
                numbers = (str(found.pictures), _number(found.mean), _number(found.quantiles[-1]))
                rows.append((name, words, *numbers, *_share(found.above), *_share(found.closer)))
    return rows


def _off_table(facts: NeighbourFacts) -> Table:
    off = facts.found.off
    assert off is not None
    return [
        (
            "nearest lies in a source that was off",
            "n",
            "share",
            "95 %",
            "chance",
            "real pictures of the others",
        ),
        (
            "generated",
            str(off.share.pictures),
            *_share(off.share),
            _percent(off.chance),
            _percent(off.real),
        ),
    ]


def _closest_table(facts: NeighbourFacts) -> Table:
    rows: Table = [("closest pairs", "training picture", "cosine", "")]
    for (made, source, trained), pair in zip(facts.closest_files, facts.found.closest, strict=True):
        rows.append(
            (made, f"{source}/{trained}", _number(pair.similarity), "" if pair.allowed else "switched off")
        )
    return rows


def _membership_table(facts: MembershipFacts) -> Table:
    rows: Table = [
        ("membership by", "adapter", "members", "held out", "AUC", "95 %", "TPR at 1 % FPR", "95 %", "FPR")
    ]
    for name, found in _adapters(facts):
        for key, score in found.scores.items():
            rows.append(
                (
                    SCORES[key],
                    name,
                    str(score.members),
                    str(score.others),
                    _number(score.auc),
                    " to ".join(map(_number, score.auc_interval)),
                    _percent(score.tpr),
                    " to ".join(map(_percent, score.tpr_interval)),
                    _percent(score.fpr),
                )
            )
    return rows


def _text_noise_table(facts: MembershipFacts) -> Table:
    rows: Table = [
        ("text-conditional noise", "members' captions", "held-out captions", "the bare backbone's, of both")
    ]
    for name, found in _adapters(facts):
        own = (f"{value:.3g}" for value in found.text_noise)
        rows.append((name, *own, ", ".join(f"{value:.3g}" for value in found.backbone_text_noise)))
    return rows


def _adapters(facts: MembershipFacts) -> list[tuple[str, Membership]]:
    named = [(found.source, found) for found in facts.found]
    if facts.control is not None:
        named.append((f"control: {facts.control.source}, overfitted", facts.control))
    return named


def _membership_guidance(facts: MembershipFacts) -> list[str]:
    lines = [
        "Where the blind row is not 0.5, members and held-out pictures differ by more than membership: read the error "
        "against the backbone's."
    ]
    if facts.control is None:
        lines.append("There is no positive control: an AUC of 0.5 may say that the attack is weak.")
    elif not facts.control.scores["calibrated"].found:
        lines.append("The attack does not find the overfitted control: it says nothing of the others.")
    few = [found.source for found in facts.found if found.scores["loss"].others * FALSE_ALARMS < 1]
    if few:
        lines.append(
            f"Fewer than 100 held-out pictures ({', '.join(few)}): no false alarm is allowed at all."
        )
    if facts.left_out:
        lines.append(f"Left out, for want of pictures: {', '.join(facts.left_out)}.")
    return lines


def _share(found: Share | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    return _percent(found.value), " to ".join(map(_percent, found.interval))


def _number(value: float) -> str:
    return f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
