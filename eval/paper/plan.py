"""Everything that the results depend on, in one place. A run keeps its plan, and refuses to go on with another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from promptcdm.errors import BadInput
from promptcdm.settings import TrainSettings
from promptcdm.tensorfile import write_json

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"

# How an adapter is trained on nano: what two cores can do for both plans in six hours. Of as many pictures seen, steps
# of 32 leave a lower held-out error than fewer of 128 (animals, 3,840 seen: 0.333 against 0.351). Every system here
# trains with the same.
TRAINING = TrainSettings(
    steps=120,
    batch_size=32,
    learning_rate=2e-3,
    targets="wide",
    loraplus_lr_ratio=10.0,
    unconditional="adapter",
    mixed_precision="no",
    checkpoint_every=50,
    deterministic=True,  # so that a GPU too can show a forgotten picture's bytes to be as if it had never been there
)
VENDORS = (
    *("emojione", "fluent-emoji", "fluent-emoji-flat", "fxemoji"),
    *("noto-v1", "openmoji", "streamline-kameleon-color", "twemoji"),
)
TOPICS = ("activities", "animals", "food", "nature", "objects", "people", "smileys", "travel")
# With --quick: of the kinds of system one each, where there are several.
ONLY_QUICK = (
    *(
        "backbone",
        "monolith",
        "oracle source",
        "best source",
        "draw uniform",
        "draw prompt",
        "draw each step",
    ),
    *("average", "soup", "switch", "LoRAtorio", "classifier", "classifier top-1", "posterior top-1"),
    *(
        "prompt top-1",
        "product",
        "product top-1",
        "product top-2",
        "Ito",
        "regional",
        "phrases",
        "monolith phrases",
    ),
)
STRATA = ("wording", "source-concept", "concept", "withheld", "joined")


@dataclass(frozen=True)
class Counts:
    """Prompts of each stratum."""

    validation: int  # for choosing; their concepts are in no test prompt
    test: int


@dataclass(frozen=True)
class Plan:
    """One run of the experiment."""

    name: str
    sources: str  # folder of source folders; held-out pictures in its folder heldout
    names: tuple[str, ...] = ()  # of them; () is all
    backbone: str = "nano"
    prompts: str = ""  # a committed file; "" makes them from the folders
    nouns: str = ""  # CSV of concept and noun: only these concepts are asked for
    counts: Counts = Counts(6, 40)
    training: TrainSettings = TRAINING
    source_rank: int = 0  # of a source's adapter; 0 is the training's, which is the monolith's too
    budget: str = (
        "images"  # every system sees equally many pictures; "plateau": each stops on its held-out loss
    )
    seeds: int = 1  # trainings of the primary systems
    monoliths: tuple[str, ...] = ("monolith", "monolith fast", "monolith 8r", "monolith tagged")
    steps: int = 16  # denoising steps
    drawn_in: str = "float32"  # precision of the backbone that draws; error is always measured in float32
    guidance: tuple[float, ...] = (1.5, 3.0)  # tried on validation prompts, alike for every kind of system
    systems: tuple[str, ...] = ()  # of systems.py; () is all
    chunk: int = 25  # pictures of one unit of work; some 100 suit a GPU
    ruler_pictures: int = 400
    ruler_levels: int = 7
    judges: tuple[str, ...] = (
        "nano-judge",
        "sealed-judge",
    )  # the first chooses, the last one's scores are told
    towers: tuple[str, ...] = ("instance-tower", "concept-tower")
    clip: str = ""  # open_clip model and local weights, NAME:FILE, for CLIPScore
    forget_slices: int = 4
    membership_pictures: int = 200
    control_steps: int = 400  # of membership's positive control
    splits: tuple[int, ...] = (2, 4, 16, 32)  # numbers of sources that all pictures are split into, for scale
    seed: int = 0
    options: dict[str, bool] = field(default_factory=lambda: {"continual": True, "slices": True})

    def record(self) -> dict[str, Any]:
        """As JSON; a path inside the project is told from its root."""
        told = json.loads(json.dumps(asdict(self)))
        root = HERE.parents[1]
        for key in ("sources", "prompts", "nouns"):
            if told[key] and Path(told[key]).is_relative_to(root):
                told[key] = Path(told[key]).relative_to(root).as_posix()
            elif told[key]:
                told[key] = Path(told[key]).name
        if Path(self.backbone).is_dir():
            told["backbone"] = Path(self.backbone).name
        return dict(told)


VENDOR = Plan(
    name="vendor",
    sources=str(EXAMPLES / "emoji" / "out"),
    names=VENDORS,
    prompts=str(HERE / "prompts" / "vendor.csv"),
    nouns=str(EXAMPLES / "emoji" / "countable.csv"),
    training=replace(TRAINING, mixed_precision="bf16"),
    seeds=5,
    drawn_in="bfloat16",  # 2.5 times as fast on two cores; pictures differ by 0.6 of 255 on average
)
TOPIC = replace(
    VENDOR,
    name="topic",
    sources=str(EXAMPLES / "emoji" / "out" / "topics"),
    names=TOPICS,
    prompts=str(HERE / "prompts" / "topic.csv"),
    training=TRAINING,
    seeds=1,
    drawn_in="float32",
    monoliths=("monolith", "monolith 8r"),
    splits=(),
    options={"continual": False, "slices": False, "ideas": True},
)
# The four topics that hold 63 of the 74 ideas withheld from nano, trained four times as long as `topic` trains, which
# teaches them (docs/results.md), and the systems that its claim is about. The sources' ranks sum to the larger
# monolith's: with rank 8 each they learn less of what is withheld than it does.
LONGER = replace(
    TOPIC,
    name="longer",
    names=("activities", "animals", "food", "objects"),
    prompts=str(HERE / "prompts" / "longer.csv"),
    training=replace(TRAINING, steps=480, mixed_precision="bf16"),
    source_rank=16,
    guidance=(2.0, 4.0),
    drawn_in="bfloat16",
    systems=(
        *("backbone", "monolith", "monolith 8r", "oracle source", "draw prompt", "average"),
        *("prompt top-1", "product", "product top-1", "regional"),
        *("product, backbone", "monolith, backbone", "monolith 8r, backbone"),
        *("product, backbone as source", "monolith, backbone as source", "monolith 8r, backbone as source"),
        *("phrases", "phrases, layout", "monolith phrases"),
    ),
    ruler_pictures=200,
    options={"continual": False, "slices": False},
)
QUICK = replace(
    VENDOR,
    name="quick",
    sources=str(EXAMPLES / "emoji" / "slice"),
    names=("fluent-emoji-flat", "fxemoji", "openmoji", "twemoji"),
    prompts=str(HERE / "prompts" / "quick.csv"),
    counts=Counts(2, 10),
    training=replace(TRAINING, steps=180, batch_size=8, learning_rate=1e-3),
    seeds=1,
    monoliths=("monolith",),
    steps=8,
    drawn_in="float32",
    guidance=(2.0,),
    chunk=25,
    systems=ONLY_QUICK,
    ruler_pictures=60,
    ruler_levels=4,
    membership_pictures=24,
    control_steps=0,
    splits=(),
    options={"continual": False, "slices": False},
)
PLANS = {plan.name: plan for plan in (VENDOR, TOPIC, LONGER, QUICK)}
MORE = ("seeds", "splits", "options")
BUILT = EXAMPLES / "emoji" / "out"  # where examples/emoji/build.py writes


def changed(plan: Plan, words: Sequence[str]) -> Plan:
    """The plan with numbers changed: NAME=VALUE, with commas for several, `training.` before a training setting's.

    Raises BadInput for what is no number of a plan.
    """
    for word in words:
        name, _, value = word.partition("=")
        owner = plan.training if name.startswith("training.") else plan
        field = name.removeprefix("training.")
        before = getattr(owner, field, None)
        try:
            now = _number(before, value)
        except (TypeError, ValueError):
            raise BadInput(
                f"--set {word}: it takes NAME=VALUE, a number of the plan such as seeds=3"
            ) from None
        own: dict[str, Any] = {field: now}
        plan = (
            replace(plan, training=replace(plan.training, **own))
            if owner is not plan
            else replace(plan, **own)
        )
    return plan


def _number(before: object, value: str) -> object:
    """The words as what stands there: a number, or several."""
    if isinstance(before, tuple) and all(isinstance(each, int | float) for each in before):
        kind = float if before and isinstance(before[0], float) else int
        return tuple(kind(part) for part in value.split(",") if part)
    if isinstance(before, bool):
        return bool(int(value))
    if isinstance(before, int | float):
        return type(before)(value)
    raise TypeError


def recorded(out: Path) -> dict[str, Any]:
    """The record in the folder of a run; one from before a number existed had what is its default now."""
    there = json.loads((out / "plan.json").read_text(encoding="utf-8"))
    return {**Plan(name="", sources="").record(), **there}


def keep(plan: Plan, out: Path) -> None:
    """Write the plan into the folder of the run. Raises BadInput where another one is there.

    More may be asked of a run that is there (MORE): nothing that was made depends on it.
    """
    path = out / "plan.json"
    if path.is_file():
        there = recorded(out)
        told = plan.record().items()
        differing = sorted(key for key, value in told if key not in MORE and there[key] != value)
        if differing:
            raise BadInput(f"{out} is a run with another {', '.join(differing)}; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, plan.record())
