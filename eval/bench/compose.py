"""What composition costs: the row engine against the ways of others, in one process, interleaved.

    python eval/bench/compose.py [--unet eval/bench/unet35m.json | promptcdm/shipped/nano/unet/config.json]
                                 [--sources 1 2 4] [--latents 16 32] [--calls 12] [--repeats 3] [--out FILE.json]
    python eval/bench/compose.py --device cuda --dtype bfloat16 --unet eval/bench/sd15_unet.json --latents 64
                                 --sources 1 2 4 8 16 32 --compile

A run is `--calls` guided UNet calls from noise to picture. K sources with random LoRAs of rank 8 on attention.

    loop        K times `set_adapters` of diffusers and a forward of two rows      what is done today
    peft        one forward of 2K rows, PEFT's mixed batch through hooks
    plain       one forward of 2K rows of the bare UNet: the floor for so many rows
    rows        ours, the same 2K rows                                             same mathematics as loop
    rows anew   ours, every text's keys and values at every call                   what `reuse_text` gains
    shared      ours, one unconditional row a picture                              exact for adapters trained so
    top-2       ours, shared, the two largest weights
    top-2 fast  ours, top-2, guidance in the middle 60 % of the noise levels, deep features every third call
    stock       K = 1: diffusers with that one LoRA active, two rows               what one source may cost at most
    NAME, c     ours, compiled (`--compile`), in forwards of a fixed number of rows; on a GPU with CUDA graphs

CPU time of the process with one thread (on a GPU: CUDA events), minimum and median over the repeats. The error is that
of the guided prediction against `loop`'s, root mean square over that of `loop`, the mean over the calls. `mfu` is the
FLOPs of the rows that were asked for over what the device could have done in that time (`--peak-tflops`, or known by
the GPU's name), `gib` the peak of GPU memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from promptcdm.adapter import Adapter
from promptcdm.adapter_record import AdapterRecord, BackboneRecord
from promptcdm.backbone import Backbone
from promptcdm.composed_unet import ComposedUNet
from promptcdm.engine import Engine
from promptcdm.levers import Levers
from promptcdm.lora import target_modules
from promptcdm.router import Router, prior_router

RANK, GUIDANCE, TOKENS = 8, 7.5, 77
Run = Callable[[], list[Tensor]]
# Dense half-precision TFLOP/s that the makers state.
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "RTX 4090": 165.0, "L40S": 362.0, "L4": 121.0}


def new_unet(config: Path, device: str, dtype: torch.dtype) -> Any:
    """A UNet of random weights."""
    torch.manual_seed(0)
    named = json.loads(config.read_text(encoding="utf-8"))
    unet = UNet2DConditionModel(**{k: v for k, v in named.items() if not k.startswith("_")})
    return unet.requires_grad_(False).eval().to(device, dtype)


def random_loras(unet: Any, count: int) -> list[dict[str, Tensor]]:
    """LoRAs on attention, in the grammar of promptcdm/lora.py, large enough to show."""
    generator = torch.Generator().manual_seed(1)
    loras = []
    for _ in range(count):
        tensors = {}
        for name in target_modules(unet, "attention"):
            out, width = unet.get_submodule(name).weight.shape
            a = torch.randn(RANK, width, generator=generator) / width**0.5
            b = torch.randn(out, RANK, generator=generator) * 0.3 / RANK**0.5
            tensors[f"unet.{name}.lora_A.weight"], tensors[f"unet.{name}.lora_B.weight"] = a, b
        loras.append(tensors)
    return loras


def adapter(name: str, lora: dict[str, Tensor], unconditional: str) -> Adapter:
    """An adapter of nothing but a LoRA."""
    record = AdapterRecord(
        source=name, kind="lora", unconditional=unconditional, trigger="",  # type: ignore[arg-type]
        backbone=BackboneRecord(name="bench", digest="0" * 64, architecture="bench"),
        settings={}, sha256="0" * 64, source_digest="", items=0, license="CC0-1.0", author="", origin="",
        attribution="", versions={},
    )  # fmt: skip
    return Adapter(name, lora, {}, None, record)


def with_peft(unet: Any, loras: list[dict[str, Tensor]]) -> Any:
    """The UNet with every LoRA put in as diffusers does it."""
    for i, lora in enumerate(loras):
        targets = target_modules(unet, "attention")
        unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets), adapter_name=f"s{i}")
        for name, layer in unet.named_modules():
            if isinstance(layer, BaseTunerLayer):
                layer.lora_A[f"s{i}"].weight.data.copy_(lora[f"unet.{name}.lora_A.weight"])
                layer.lora_B[f"s{i}"].weight.data.copy_(lora[f"unet.{name}.lora_B.weight"])
    return unet.requires_grad_(False).eval()


def as_backbone(unet: Any, engine: Engine) -> Backbone:
    """A backbone of nothing but a UNet and a noise schedule."""
    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    pipe = SimpleNamespace(scheduler=schedule)
    return Backbone(pipe, unet, "bench", "0" * 64, "bench", schedule.alphas_cumprod, engine)


class Bench:
    """The inputs of a run, and each way to run it: a list of guided predictions, a call each."""

    def __init__(
        self, config: Path, sources: int, side: int, calls: int, device: str, dtype: torch.dtype
    ) -> None:
        self.k, self.bare = sources, new_unet(config, device, dtype)
        loras = random_loras(self.bare, sources)
        self.other = with_peft(new_unet(config, device, dtype), loras)
        generator = torch.Generator().manual_seed(2)
        channels, width = self.bare.config.in_channels, self.bare.config.cross_attention_dim
        self.t = [999 * (1 - n / calls) for n in range(calls)]
        self.x_t = [
            torch.randn(1, channels, side, side, generator=generator).to(device, dtype) for _ in self.t
        ]
        self.text = torch.randn(2, TOKENS, width, generator=generator).to(device, dtype)
        w = torch.arange(1, sources + 1).float().flip(0)
        self.w = (w / w.sum()).to(device)
        self.backbone = as_backbone(self.bare, Engine(self.bare))
        self.adapters = {
            branch: [adapter(f"s{i}", lora, branch) for i, lora in enumerate(loras)]
            for branch in ("adapter", "backbone")
        }
        self.row_forwards: dict[str, float] = {}

    def loop(self) -> list[Tensor]:
        """K times `set_adapters` and two rows, summed by w."""
        made = []
        for t, x_t in zip(self.t, self.x_t, strict=True):
            eps = torch.zeros_like(x_t)
            for i in range(self.k):
                self.other.set_adapters(f"s{i}")
                eps += self.w[i] * self._pair(t, x_t)
            made.append(eps)
        return made

    def peft(self) -> list[Tensor]:
        """One forward of 2K rows; PEFT groups them by adapter in every layer."""
        self.other.set_adapters([f"s{i}" for i in range(self.k)])
        names = [f"s{i}" for i in range(self.k) for _ in range(2)]

        def name_rows(layer: Any, args: Any, kwargs: Any) -> Any:
            return args, {**kwargs, "adapter_names": names}

        layers = [m for m in self.other.modules() if isinstance(m, BaseTunerLayer)]
        hooks = [m.register_forward_pre_hook(name_rows, with_kwargs=True) for m in layers]
        made = [self._summed(self.other, t, x) for t, x in zip(self.t, self.x_t, strict=True)]
        for hook in hooks:
            hook.remove()
        return made

    def plain(self) -> list[Tensor]:
        """One forward of 2K rows of the bare UNet."""
        return [self._summed(self.bare, t, x) for t, x in zip(self.t, self.x_t, strict=True)]

    def _summed(self, unet: Any, t: float, x_t: Tensor) -> Tensor:
        rows = unet(
            x_t.expand(2 * self.k, *x_t.shape[1:]).contiguous(),
            t,
            self.text.repeat(self.k, 1, 1),
            return_dict=False,
        )[0]
        each = torch.stack([guided(pair) for pair in rows.chunk(self.k)])
        return (self.w.to(each.dtype).reshape(-1, 1, 1, 1, 1) * each).sum(0)

    def stock(self) -> list[Tensor]:
        """diffusers with one LoRA that stays active, two rows."""
        self.other.set_adapters("s0")
        return [self._pair(t, x_t) for t, x_t in zip(self.t, self.x_t, strict=True)]

    def _pair(self, t: float, x_t: Tensor) -> Tensor:
        """The guided prediction of two rows with the LoRA that is active."""
        return guided(self.other(torch.cat([x_t] * 2), t, self.text, return_dict=False)[0])

    def compiled(self, config: Path, rows: int, options: dict[str, Any]) -> Backbone:
        """A backbone whose engine runs compiled forwards of `rows` rows."""
        unet = new_unet(config, self.x_t[0].device.type, self.x_t[0].dtype)
        targets = target_modules(unet, "attention")
        engine = Engine(unet, slots=self.k + 1, bucket=rows, rank=RANK, targets=targets)
        engine.compile(**options)
        return as_backbone(unet, engine)

    def flops(self) -> float:
        """FLOPs of one row."""
        with FlopCounterMode(display=False) as counter:
            self.bare(self.x_t[0], self.t[0], self.text[:1], return_dict=False)
        return float(counter.get_total_flops())

    def ours(self, name: str, branch: str, levers: Levers, backbone: Backbone | None = None) -> Run:
        """A run through `ComposedUNet`, planning and routing included."""
        router: Router = prior_router(self.w)
        composed = ComposedUNet(
            backbone or self.backbone,
            self.adapters[branch],
            router=router,
            levers=levers,
            guidance_scale=GUIDANCE,
        )

        def run() -> list[Tensor]:
            made = [
                guided(composed(torch.cat([x_t] * 2), t, self.text, return_dict=False)[0])
                for t, x_t in zip(self.t, self.x_t, strict=True)
            ]
            self.row_forwards[name] = float(composed.row_forwards[0]) / len(made)
            return made

        return run


def guided(rows: Tensor) -> Tensor:
    """Classifier-free guidance over (unconditional, conditional)."""
    without, with_text = rows.chunk(2)
    return without + GUIDANCE * (with_text - without)


def timed(run: Run, device: str) -> float:
    """Seconds of a run: of the process on a CPU, between events on a GPU."""
    if device == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    run()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3


def peak_gib(run: Run, device: str) -> float | None:
    """Peak of GPU memory in a run; none on a CPU."""
    if device == "cpu":
        return None
    torch.cuda.reset_peak_memory_stats()
    run()
    return round(torch.cuda.max_memory_allocated() / 2**30, 2)


def peak_flops(device: str, tflops: float) -> float | None:
    """FLOP/s of the device: as stated, or by the GPU's name."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    known = next((peak for gpu, peak in PEAK_TFLOPS.items() if gpu in name), 0.0)
    return (tflops or known) * 1e12 or None


def error(made: list[Tensor], exact: list[Tensor]) -> float:
    """Root mean square of the difference over that of the exact, the mean over the calls."""
    each = [(m - e).float().norm() / e.float().norm() for m, e in zip(made, exact, strict=True)]
    return float(torch.stack(each).mean())


def ways_of(bench: Bench, config: Path, options: dict[str, Any] | None) -> dict[str, Run]:
    """Every way to run, by name."""
    fast = Levers(top_k=2, guidance_start=0.2, guidance_stop=0.8, cache_interval=3)
    ways: dict[str, Run] = {"loop": bench.loop, "peft": bench.peft, "plain": bench.plain}
    if bench.k == 1:
        ways["stock"] = bench.stock
    kinds: dict[str, tuple[str, Levers]] = {
        "rows": ("adapter", Levers()),
        "rows anew": ("adapter", Levers(reuse_text=False)),
        "shared": ("backbone", Levers()),
    }
    if bench.k > 2:
        kinds |= {"top-2": ("backbone", Levers(top_k=2)), "top-2 fast": ("backbone", fast)}
    for name, (branch, levers) in kinds.items():
        ways[name] = bench.ours(name, branch, levers)
    for name, rows in (("rows", 2 * bench.k), ("top-2", 3)) if options is not None else ():
        if name in kinds:  # a fixed number of rows, so an engine of its own
            made = bench.compiled(config, rows, options or {})
            ways[f"{name}, c"] = bench.ours(f"{name}, c", *kinds[name], made)
    return ways


@torch.inference_mode()
def measure(
    bench: Bench, ways: dict[str, Run], calls: int, repeats: int, device: str, peak: float | None
) -> dict[str, dict[str, float | None]]:
    """Milliseconds a call of each way, interleaved, with its error."""
    made = {name: way() for name, way in ways.items()}  # warms up, too
    memory = {name: peak_gib(way, device) for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            seconds[name].append(timed(way, device))
    flops = bench.flops()
    table: dict[str, dict[str, float | None]] = {}
    for name, taken in seconds.items():
        rows = bench.row_forwards.get(name, 2 * bench.k)
        table[name] = {
            "ms": round(1e3 * min(taken) / calls, 2),
            "ms_median": round(1e3 * statistics.median(taken) / calls, 2),
            "speed": round(min(seconds["loop"]) / min(taken), 2),
            "error": round(error(made[name], made["loop"]), 7),
            "rows": round(rows, 2),
            "mfu": round(rows * flops * calls / min(taken) / peak, 4) if peak else None,
            "gib": memory[name],
        }
    return table


def main() -> None:
    """Measure every size asked for and print the table."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--unet", type=Path, default=here / "unet35m.json", help="a UNet's config.json")
    parser.add_argument("--sources", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--latents", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--calls", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument(
        "--compile", action="store_true", help="measure compiled forwards too; minutes to begin with"
    )
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="the device's own, for mfu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    options = {"mode": "reduce-overhead"} if args.device == "cuda" else {}
    peak = peak_flops(args.device, args.peak_tflops)
    rows = []
    columns = ("ms", "ms_median", "speed", "rows", "error", "mfu", "gib")
    print(f"{'latents':>8}{'K':>4}  {'way':<12}" + "".join(f"{column:>11}" for column in columns))
    for side in args.latents:
        for k in args.sources:
            bench = Bench(args.unet, k, side, args.calls, args.device, getattr(torch, args.dtype))
            ways = ways_of(bench, args.unet, options if args.compile else None)
            for name, row in measure(bench, ways, args.calls, args.repeats, args.device, peak).items():
                rows.append({"latents": side, "sources": k, "way": name, **row})
                values = "".join(f"{'-' if row[c] is None else row[c]:>11}" for c in columns)
                print(f"{side:>8}{k:>4}  {name:<12}{values}", flush=True)
            torch._dynamo.reset()
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
