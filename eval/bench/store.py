"""What a picture costs beside the adapters that lie in the store and are not in it.

    python eval/bench/store.py [--stored 2 1000] [--steps 25] [--repeats 5] [--backbone nano] [--out FILE.json]

Each store holds copies of a shipped adapter under names of their own; two sources are allowed. CPU time of loading the
two and of one picture, minimum and median, the stores taken in turn; and whether the pictures are the same bytes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from promptcdm.adapter import Adapter
from promptcdm.backbone import Backbone
from promptcdm.generate import generate
from promptcdm.settings import GenerateSettings
from promptcdm.shipped import shipped
from promptcdm.store import AdapterStore

ALLOWED = ("s0", "s1")
PROMPT = "a fox"


def fill(root: Path, count: int) -> AdapterStore:
    """A store of `count` adapters, s0 up, the shipped ones in turn."""
    ships = AdapterStore(shipped("adapters"))
    originals = [ships.load(name) for name in ships.sources()]
    store = AdapterStore(root)
    for n in range(count):
        store.add(renamed(originals[n % len(originals)], f"s{n}"))
    return store


def renamed(adapter: Adapter, name: str) -> Adapter:
    """The same adapter as another source's; without its manifest, which names the first."""
    record = adapter.record.model_copy(update={"source": name})
    return replace(adapter, source=name, record=record, manifest=None)


def main() -> None:
    """Measure every size asked for and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stored", type=int, nargs="+", default=[2, 1000], help="adapters in each store")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--backbone", default="nano")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    settings = GenerateSettings(num_inference_steps=args.steps)
    backbone = Backbone.load(args.backbone, device="cpu")
    loading: dict[int, list[float]] = {count: [] for count in args.stored}
    drawing: dict[int, list[float]] = {count: [] for count in args.stored}
    drawn = set()
    with tempfile.TemporaryDirectory() as place:
        stores = {count: fill(Path(place) / str(count), count) for count in args.stored}
        for repeat in range(args.repeats + 1):
            for count, store in stores.items():
                start = time.process_time()
                for name in ALLOWED:
                    store.load(name)
                loaded = time.process_time()
                made = generate([PROMPT], allowed=ALLOWED, backbone=backbone, store=store, settings=settings)
                drawn.add(made.images[0].tobytes())
                if repeat:  # the first warms up
                    loading[count].append(loaded - start)
                    drawing[count].append(time.process_time() - loaded)
    rows = []
    print(f"{'stored':>8}{'load ms':>10}{'median':>10}{'picture s':>11}{'median':>10}")
    for count in args.stored:
        load, draw = loading[count], drawing[count]
        rows.append({"stored": count, "load_s": load, "picture_s": draw})
        print(
            f"{count:>8}{1e3 * min(load):>10.1f}{1e3 * statistics.median(load):>10.1f}{min(draw):>11.2f}"
            f"{statistics.median(draw):>10.2f}"
        )
    print("the same picture, byte for byte" if len(drawn) == 1 else f"{len(drawn)} different pictures")
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
