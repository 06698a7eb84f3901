"""What training costs: ours against diffusers' `train_text_to_image_lora.py`, interleaved, on the same backbone.

    python eval/bench/train.py --script train_text_to_image_lora.py [--backbone nano | FOLDER | sd15] [--resolution 128]
                               [--batch 4] [--steps 6] [--repeats 3] [--row 8] [--row-steps 50] [--out FILE.json]
    python eval/bench/train.py --script ... --device cuda --precision bf16 --backbone sd15 --resolution 512
                               --batch 8 1 4 --steps 10 --repeats 1 --pictures 24 --limit 60

`--script` is a copy that you have of diffusers' examples/text_to_image/train_text_to_image_lora.py. `sd15` is Stable
Diffusion 1.5's true shapes with random weights: it costs what the real one costs. Pictures are drawn. Same rank, batch,
resolution and type of numbers for all; one thread on a CPU.

    theirs      the script
    nothing     our loop, every picture and caption encoded at each step
    latents     the pictures encoded before the first step
    kept        that and the captions: `train_adapter`
    exact       the same with `deterministic`, on a GPU
    checkpoint  the same as kept with `gradient_checkpointing`, on a GPU

Seconds a picture, minimum and median over the steps of all repeats without the first of each: CPU time of the process,
on a GPU of the clock. A repeat runs all ways in turn, each from loading the backbone on; on a GPU ours is loaded once,
and not counted in the memory of theirs. `allowed` is the FLOPs of a
picture with its VAE encoding over those without: what keeping latents can gain at most; `share` is how much of the
gain from nothing to latents that is. `mfu` is over what the GPU could do (`--peak-tflops`, or known by its name).

`--row N` trains N sources in a row as users do: the script N times, `promptcdm train-adapter` N times, and once with
`--all`. CPU seconds and peak memory of the processes, with imports, loading and writing.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from compose import peak_flops
from drawn import draw_sources, random_sd15
from their_trainer import flags_of, load_script, now, run_script
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from promptcdm.backbone import Backbone
from promptcdm.batch import Batch, draw_batch
from promptcdm.encoded_source import EncodedSource, encode_captions, encode_source
from promptcdm.learned import new_optimizer, trainable
from promptcdm.settings import TrainSettings
from promptcdm.shipped import shipped
from promptcdm.source import Source
from promptcdm.train import add_gradients, train_adapter

WAYS = ("theirs", "nothing", "latents", "kept")
ON_GPU: dict[str, dict[str, Any]] = {
    "exact": {"deterministic": True},
    "checkpoint": {"gradient_checkpointing": "on"},
}
RANK = 4  # the script's default


@dataclass(frozen=True)
class Job:
    """What is trained, and how."""

    script: Path
    module: ModuleType
    backbone: Path
    folder: Path
    place: Path
    resolution: int
    batch: int
    steps: int
    device: str
    precision: str
    loaded: Backbone | None = None

    def settings(self) -> TrainSettings:
        """Ours for it."""
        return TrainSettings(
            steps=self.steps,
            batch_size=self.batch,
            rank=RANK,
            resolution=self.resolution,
            mixed_precision="bf16" if self.precision == "bf16" else "no",
        )

    def flags(self, folder: Path, out: Path, steps: int) -> list[str]:
        """Theirs for it."""
        return flags_of(
            self.backbone,
            folder,
            out,
            steps=steps,
            batch=self.batch,
            resolution=self.resolution,
            precision=self.precision,
        )

    def load(self) -> Backbone:
        """The backbone in the type of numbers that the script would have it in."""
        return self.loaded or Backbone.load(
            self.backbone, device=self.device, dtype="bfloat16" if self.precision == "bf16" else "float32"
        )


@dataclass
class Taken:
    """Of one way: seconds of each step, seconds before the first one, bytes of GPU memory."""

    steps: list[float] = field(default_factory=list)
    before: list[float] = field(default_factory=list)
    peak: int = 0


def ours(job: Job, way: str) -> list[float]:
    """When the first step began, and when each had ended."""
    backbone, source, settings = job.load(), Source.open(job.folder), job.settings()
    if way not in ("nothing", "latents"):
        stamps: list[float] = []
        settings = replace(settings, **ON_GPU.get(way, {}))
        train_adapter(source, backbone, settings, on_step=lambda step, loss: stamps.append(now(job.device)))
        return stamps
    digest = source.manifest().merkle_root
    with backbone.lock:
        known = encode_source(source, backbone, settings, "") if way == "latents" else None
        with trainable(backbone, settings, digest) as parameters:
            optimizer = new_optimizer(parameters, settings)
            stamps = [now(job.device)]
            for step in range(settings.steps):
                data, batch = inputs(known, source, backbone, settings, step)
                for group in optimizer.param_groups:
                    group["lr"] = group["rate"]
                add_gradients(parameters, batch, data, backbone, settings, step)
                torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                stamps.append(now(job.device))
    return stamps


@torch.no_grad()
def inputs(
    known: EncodedSource | None, source: Source, backbone: Backbone, settings: TrainSettings, step: int
) -> tuple[EncodedSource, Batch]:
    """A batch, and what it is drawn from: pictures and captions encoded now, or `known` with captions encoded now."""
    generator = torch.Generator().manual_seed(step)
    if known is None:
        rows = torch.randperm(len(source), generator=generator)[: settings.rows].tolist()
        data = encode_source(source, backbone, settings, "", only=rows)
        return data, draw_batch(data, backbone, settings, settings.rows, generator)
    batch = draw_batch(known, backbone, settings, settings.rows, generator)
    embeds = encode_captions([known.captions[int(i)] for i in batch.items], backbone)
    place = torch.zeros_like(known.caption_of)
    place[batch.items.to(place.device)] = torch.arange(settings.rows, device=place.device)
    return replace(known, embeds=torch.cat([part.embeds for part in embeds]), caption_of=place), batch


def theirs(job: Job) -> list[float]:
    """When the first step began, and when each had ended."""
    out = Path(tempfile.mkdtemp(dir=job.place))
    return run_script(job.module, job.flags(job.folder, out, job.steps), job.device)


def measure(job: Job, repeats: int, until: float) -> dict[str, Taken]:
    """Every way in turn, so often; none is begun when the clock has come to `until`."""
    taken = {way: Taken() for way in (*WAYS, *(ON_GPU if job.device == "cuda" else ()))}
    for _ in range(repeats):
        for way, kept in taken.items():
            if time.perf_counter() > until:
                continue
            ours_idle = torch.cuda.memory_allocated() if job.device == "cuda" and way == "theirs" else 0
            if job.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            start = now(job.device)
            stamps = theirs(job) if way == "theirs" else ours(job, way)
            # What is stamped first is the beginning of the first step or, by `train_adapter`, its end: the first is
            # left out.
            each, first_is_end = [b - a for a, b in itertools.pairwise(stamps)], way in ("kept", *ON_GPU)
            kept.before.append(stamps[0] - start - (each[0] if first_is_end else 0))
            kept.steps += each if first_is_end else each[1:]
            if job.device == "cuda":
                kept.peak = max(kept.peak, torch.cuda.max_memory_allocated() - ours_idle)
            gc.collect()
            if job.device == "cuda":
                torch.cuda.empty_cache()
    return {way: kept for way, kept in taken.items() if kept.steps}


def flops(job: Job) -> dict[str, float]:
    """FLOPs of a picture: a step of it (forward and backward), its VAE encoding, its caption."""
    backbone, source, settings = job.load(), Source.open(job.folder), job.settings()

    def count(action: Callable[[], object]) -> float:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            action()
        return float(counter.get_total_flops())

    with backbone.lock:
        data = encode_source(source, backbone, settings, "", only=[0])
        one, single = (
            draw_batch(data, backbone, settings, 1, torch.Generator()),
            replace(settings, batch_size=1),
        )
        with trainable(backbone, settings, source.manifest().merkle_root) as parameters:
            step = count(lambda: add_gradients(parameters, one, data, backbone, single, 0))
        with torch.no_grad():
            text = count(lambda: encode_captions([data.captions[0]], backbone))
            both = count(lambda: encode_source(source, backbone, settings, "", only=[0]))
    return {"step": step, "vae": both - 2 * text, "text": text}  # encode_source reads the empty caption too


def rows_of(
    job: Job, taken: dict[str, Taken], work: dict[str, float], peak: float | None
) -> list[dict[str, Any]]:
    """The table: a row for each way that was measured."""
    best = {way: min(kept.steps) / job.batch for way, kept in taken.items()}
    if "theirs" not in best:
        return []
    allowed = (work["step"] + work["vae"]) / work["step"]
    table = []
    for way, kept in taken.items():
        share = best["nothing"] / best[way] / allowed if way == "latents" else None
        table.append(
            {
                "batch": job.batch,
                "way": way,
                "s": round(best[way], 4),
                "s_median": round(statistics.median(kept.steps) / job.batch, 4),
                "images/s": round(1 / best[way], 3),
                "speed": round(best["theirs"] / best[way], 2),
                "allowed": round(allowed, 3) if way == "latents" else None,
                "share": round(share, 3) if share else None,
                "before": round(min(kept.before), 1),
                "mfu": round(work["step"] / best[way] / peak, 3) if peak else None,
                "gib": round(kept.peak / 2**30, 2) if kept.peak else None,
            }
        )
    return table


def child(words: list[str], device: str) -> tuple[float, float, float]:
    """CPU seconds, seconds of the clock and peak GiB of a process. Raises SystemExit where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} if device == "cpu" else dict(os.environ)
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        actions = [(os.POSIX_SPAWN_DUP2, said.fileno(), stream) for stream in (1, 2)]
        process = os.posix_spawn(words[0], words, environment, file_actions=actions)
        _, status, used = os.wait4(process, 0)
        if status:
            said.seek(0)
            raise SystemExit(f"{' '.join(words)} failed:\n{said.read().decode(errors='replace')[-2000:]}")
    gib = used.ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    return used.ru_utime + used.ru_stime, time.perf_counter() - start, gib


def in_a_row(job: Job, sources: list[Path], steps: int) -> list[dict[str, Any]]:
    """All sources trained by the script, by a process of ours each, and by one of ours; a row for each."""
    sizes: dict[str, object] = {
        "backbone": job.backbone,
        "device": job.device,
        "steps": steps,
        "batch-size": job.batch,
        "rank": RANK,
        "resolution": job.resolution,
        "mixed-precision": job.settings().mixed_precision,
    }
    train = [sys.executable, "-m", "promptcdm", "train-adapter", *(f"--{k}={v}" for k, v in sizes.items())]
    ran: dict[str, list[tuple[float, float, float]]] = {"theirs": [], "ours, one by one": []}
    for source in sources:
        flags = job.flags(source, job.place / "theirs" / source.name, steps)
        ran["theirs"].append(child([sys.executable, str(job.script), *flags], job.device))
        alone = [f"--source={source}", f"--store={job.place / 'alone'}"]
        ran["ours, one by one"].append(child([*train, *alone], job.device))
    every = [f"--all={sources[0].parent}", f"--store={job.place / 'all'}"]
    ran["ours, --all"] = [child([*train, *every], job.device)]
    total = sum(cpu if job.device == "cpu" else clock for cpu, clock, _ in ran["theirs"])
    table = []
    for way, each in ran.items():
        seconds = sum(cpu if job.device == "cpu" else clock for cpu, clock, _ in each)
        table.append(
            {
                "sources": len(sources),
                "images": len(sources) * steps * job.batch,
                "way": way,
                "s": round(seconds, 1),
                "speed": round(total / seconds, 2),
                "gib": round(max(gib for *_, gib in each), 2),
            }
        )
    return table


def say(table: list[dict[str, Any]]) -> None:
    """Print it, where anything was measured."""
    if not table:
        return
    widths = [max(len(key), 17 if key == "way" else 9) for key in table[0]]
    print("".join(f"{key:>{width}}" for key, width in zip(table[0], widths, strict=True)))
    for row in table:
        cells = ("-" if value is None else str(value) for value in row.values())
        print("".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)), flush=True)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--script", type=Path, required=True, help="your copy of diffusers' script")
    parser.add_argument(
        "--backbone", default="nano", help="nano, sd15 (random weights), or a diffusers folder"
    )
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--pictures", type=int, default=200, help="of each source")
    parser.add_argument("--batch", type=int, nargs="+", default=[4])
    parser.add_argument(
        "--steps", type=int, default=6, help="timed, of each way and repeat; 0 leaves them out"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--limit", type=float, default=math.inf, help="seconds after which no further way is begun"
    )
    parser.add_argument("--row", type=int, default=0, help="sources in a row; 0 leaves it out")
    parser.add_argument("--row-steps", type=int, default=50)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="no", choices=["no", "bf16"])
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="the device's own, for mfu")
    parser.add_argument("--place", type=Path, help="a folder to work in; what it holds of sd15 is used again")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure and print the tables."""
    args = parsed()
    if uneven := [batch for batch in args.batch if args.pictures % batch]:
        raise SystemExit(
            f"--pictures {args.pictures}: the script ends an epoch with a smaller batch, and that step would count as "
            f"a fast one; give a multiple of {uneven[0]}"
        )
    os.environ["HF_HUB_OFFLINE"] = "1"
    if args.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "1"
        torch.set_num_threads(1)
    else:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # before cuBLAS is used
    until = time.perf_counter() + args.limit
    module, tables = load_script(args.script), list[list[dict[str, Any]]]()
    kept = nullcontext(args.place) if args.place else tempfile.TemporaryDirectory()
    with kept as root, tempfile.TemporaryDirectory(dir=root) as place:
        pictures = Path(place) / "pictures"
        sources = draw_sources(pictures, max(1, args.row), args.pictures, args.resolution)
        where = {"nano": shipped("nano"), "sd15": Path(root) / "sd15"}.get(args.backbone, Path(args.backbone))
        if args.backbone == "sd15" and not where.exists():
            kind = torch.bfloat16 if args.precision == "bf16" else torch.float32
            random_sd15(where, Path(__file__).with_name("sd15_unet.json"), args.device, kind)
        job = Job(
            args.script, module, where, sources[0], Path(place), args.resolution, args.batch[0],
            args.steps + 1, args.device, args.precision,
        )  # fmt: skip
        if args.device == "cuda":
            job = replace(job, loaded=job.load())
        work = flops(job) if args.steps else {}
        for batch in args.batch:
            job = replace(job, batch=batch)
            if args.steps:
                peak = peak_flops(args.device, args.peak_tflops)
                tables.append(rows_of(job, measure(job, args.repeats, until), work, peak))
            if args.row:
                tables.append(in_a_row(job, sources, args.row_steps))
            for table in tables[-2:] if args.steps and args.row else tables[-1:]:
                say(table)
            if args.out:
                args.out.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")
            shutil.rmtree(Path(place) / "theirs", ignore_errors=True)


if __name__ == "__main__":
    main()
