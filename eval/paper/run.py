"""The paper's claims on real sources, by one command, with every baseline.

    python eval/paper/run.py --quick                     four sources of the committed slice: a trial of the whole
    python eval/paper/run.py --plan vendor               eight collections; build them first: examples/emoji/build.py
    python eval/paper/run.py --plan topic                eight topics of them
    python eval/paper/run.py --plan longer               four of the topics, trained four times as long
    python eval/paper/run.py --sources FOLDER --backbone B --out DIR      your own folders, any Stable Diffusion

Stages: prompts, adapters, ruler, choice, pictures, forgetting, picture, membership, growth, leftover, ideas, report.
Each writes files that a rerun picks up, and a kill loses what was being made. The same command given in two shells
shares the work between them; so does --workers, on a GPU too: `--device cuda --workers 14 --set chunk=100`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from paper.plan import BUILT, HERE, PLANS, Plan, changed, keep
from promptcdm.errors import PromptCDMError, RunFailed

STAGES = (
    *("prompts", "adapters", "ruler", "choice", "pictures", "forgetting"),
    *("picture", "membership", "growth", "leftover", "ideas", "report"),
)
# These need the adapters alone: every third worker does them while the others draw.
ASIDE = ("picture", "membership", "growth")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; 0 done, 1 failed, 2 wrong input."""
    given = _arguments(arguments)
    try:
        plan = plan_of(given)
        out = given.out or HERE / "results" / plan.name
        keep(plan, out)
        others = _others(given, arguments)
        say = print if not given.worker else _nothing
        try:
            run(plan, out, device=given.device, until=given.until, worker=given.worker, say=say)
        finally:
            codes = [other.wait() for other in others]
        if any(codes):
            raise RunFailed(
                "another worker failed; its message is above, and a rerun goes on from what is done"
            )
    except PromptCDMError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 1 if isinstance(error, RunFailed) else 2
    return 0


def run(
    plan: Plan,
    out: Path,
    *,
    device: str = "cpu",
    until: str = "report",
    worker: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Every stage up to `until`; the first worker alone writes the report. Raises as the parts of promptcdm do."""
    from paper.experiment import Experiment  # torch is loaded here, after the number of threads was set

    experiment = Experiment.open(plan, out, device, say)
    for name in _order(STAGES[: STAGES.index(until) + 1], worker):
        experiment.run(name)


def _order(stages: Sequence[str], worker: int) -> list[str]:
    """The stages of a worker, the first one 0."""
    own = [name for name in stages if not worker or name != "report"]
    if worker % 3 != 1:
        return own
    first = [name for name in own if name in ("prompts", "adapters", *ASIDE)]
    return first + [name for name in own if name not in first]


def _nothing(line: str) -> None:
    pass


def plan_of(given: argparse.Namespace) -> Plan:
    """The plan that the flags name, with what they change."""
    plan = PLANS["quick" if given.quick else given.plan]
    if given.sources:
        name = f"{plan.name}-{given.sources.resolve().name}"
        plan = replace(plan, name=name, sources=str(given.sources), names=(), prompts="", nouns="")
    if given.prompts:
        plan = replace(plan, prompts=str(given.prompts))
    if given.built:
        plan = replace(plan, sources=str(given.built / Path(plan.sources).relative_to(BUILT)))
    if given.budget != plan.budget:
        plan = replace(plan, name=f"{plan.name}-{given.budget}", budget=given.budget)
    if given.judges:
        plan = replace(plan, judges=tuple(given.judges.split(",")))
    return changed(replace(plan, backbone=given.backbone), given.set)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the same as --plan quick")
    parser.add_argument("--plan", choices=sorted(PLANS), default="vendor", help="[vendor]")
    parser.add_argument("--backbone", default="nano", help="nano, a diffusers folder or a hub id [nano]")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or mps [cpu]")
    parser.add_argument(
        "--sources", type=Path, help="a folder of source folders, with heldout/NAME beside them"
    )
    parser.add_argument(
        "--prompts", type=Path, help="CSV of prompts; left out, they are drawn from the folders"
    )
    parser.add_argument(
        "--built", type=Path, help="where build.py wrote vendor's and topic's pictures [examples/emoji/out]"
    )
    parser.add_argument(
        "--budget",
        choices=("images", "plateau"),
        default="images",
        help="equally many pictures seen, or each until its own loss on pictures held out stands still [images]",
    )
    parser.add_argument(
        "--judges", help="names with commas; the first chooses, the last one's scores are told"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="another number in the plan: seeds=3"
    )
    parser.add_argument("--out", type=Path, help="folder of the run [eval/paper/results/PLAN]")
    parser.add_argument("--until", choices=STAGES, default="report", help="the last stage [report]")
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each [2]")
    parser.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _others(given: argparse.Namespace, arguments: Sequence[str] | None) -> list[subprocess.Popen[bytes]]:
    """The other workers: the same command, each with one thread, as torch's threads would wait for each other."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product on a GPU
    command = [sys.executable, str(Path(__file__).resolve()), *words, "--workers", "1"]
    return [subprocess.Popen([*command, "--worker", str(n)]) for n in range(1, given.workers)]


if __name__ == "__main__":
    sys.exit(main())
