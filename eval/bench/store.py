"""What a picture costs beside the adapters that lie in the store and are not in it.

    python eval/bench/store.py [--stored 2 1000] [--steps 25] [--repeats 5] [--backbone nano] [--out FILE.json]

Each store holds copies of a shipped adapter under names of their own; two sources are allowed. CPU time of loading the
two, of putting one into a slot and of one picture, minimum and median, the stores taken in turn; and whether the
pictures are the same bytes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from promptcdm.adapter import Adapter
from promptcdm.backbone import Backbone
from promptcdm.generate import generate
from promptcdm.settings import GenerateSettings
from promptcdm.shipped import shipped
from promptcdm.slots import SlotLora
from promptcdm.store import AdapterStore

ALLOWED = ("s0", "s1")
PROMPT = "a fox"
WHAT = ("load", "slot", "picture")


def fill(root: Path, count: int) -> AdapterStore:
    """A store of `count` adapters, s0 up, the shipped ones in turn."""
    ships = AdapterStore(shipped("adapters"))
    originals = [ships.load(name) for name in ships.sources()]
    store = AdapterStore(root)
    for n in range(count):
        store.add(renamed(originals[n % len(originals)], f"s{n}"))
    return store


def renamed(adapter: Adapter, name: str) -> Adapter:
    """The same adapter as another source's."""
    record = adapter.record.model_copy(update={"source": name})
    assert adapter.manifest is not None
    manifest = adapter.manifest.model_copy(update={"source": name})
    return replace(adapter, source=name, record=record, manifest=manifest)


@dataclass
class Taken:
    """CPU seconds of each repeat."""

    load: list[float] = field(default_factory=list)
    slot: list[float] = field(default_factory=list)
    picture: list[float] = field(default_factory=list)


def once(store: AdapterStore, backbone: Backbone, settings: GenerateSettings, taken: Taken) -> bytes:
    """Load, put into a slot, draw; returns the picture's bytes."""
    start = time.process_time()
    adapters = [store.load(name) for name in ALLOWED]
    loaded = time.process_time()
    lora = SlotLora(adapters[0].source, adapters[0].lora)
    backbone.engine.admit(lora)
    admitted = time.process_time()
    backbone.engine.evict([lora])
    begun = time.process_time()
    made = generate([PROMPT], allowed=ALLOWED, backbone=backbone, store=store, settings=settings)
    taken.picture.append(time.process_time() - begun)
    taken.load.append(loaded - start)
    taken.slot.append(admitted - loaded)
    return made.images[0].tobytes()


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
    taken = {count: Taken() for count in args.stored}
    drawn = set()
    with tempfile.TemporaryDirectory() as place:
        stores = {count: fill(Path(place) / str(count), count) for count in args.stored}
        for store in stores.values():  # warms up
            once(store, backbone, settings, Taken())
        for _ in range(args.repeats):
            drawn |= {once(store, backbone, settings, taken[count]) for count, store in stores.items()}
    print(f"{'stored':>8}" + "".join(f"{name + ' ms':>12}{'median':>10}" for name in WHAT))
    for count, each in taken.items():
        values = [(1e3 * min(t), 1e3 * statistics.median(t)) for t in (getattr(each, name) for name in WHAT)]
        print(f"{count:>8}" + "".join(f"{least:>12.1f}{median:>10.1f}" for least, median in values))
    print("the same picture, byte for byte" if len(drawn) == 1 else f"{len(drawn)} different pictures")
    if args.out:
        rows = [{"stored": count, **asdict(each)} for count, each in taken.items()]
        args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
