"""The demo: three collections train an adapter each, three users with different rights ask for the same pictures.

    first picture                from the adapters that ship
    train all sources but one    each alone
    pictures                     the bare backbone, and every user who may not use the last source
    train the last source        its user's pictures
    forget it                    the same pictures again, compared with those made before it was ever there
    score                        TIFA of every row
    report.html

It uses the public API alone. A run that was interrupted goes on with the adapters that are finished.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from PIL import Image, ImageChops

from promptcdm import __version__
from promptcdm.backbone import Backbone
from promptcdm.demo_plan import DEVICE, DemoPlan, plan_commands
from promptcdm.demo_result import DemoResult, Forgotten, Row, Ruler, Score, SourceFacts
from promptcdm.errors import BadInput, UnknownSource
from promptcdm.evaluate import TifaReport, evaluate_tifa
from promptcdm.forget import Receipt, forget
from promptcdm.generate import Generation, generate
from promptcdm.judge import load_judge
from promptcdm.progress import generation_bar, training_bar
from promptcdm.question_rules import generate_questions
from promptcdm.questions import Question, Text, questions_json
from promptcdm.report import write_report
from promptcdm.settings import same_settings
from promptcdm.shipped import shipped
from promptcdm.source import Source
from promptcdm.store import AdapterStore
from promptcdm.tensorfile import write_bytes, write_json
from promptcdm.tifa import ALL
from promptcdm.timeline import weight_timeline
from promptcdm.train import train_adapter

if sys.platform != "win32":
    import resource

Say = Callable[[str], None]


def run_demo(
    out: Path = Path("demo"), *, plan: DemoPlan = DemoPlan(), on_progress: Say | None = None
) -> DemoResult:
    """Run the demo into `out`; `on_progress` gets a line for each thing that is done.

    The same plan gives the same adapters, pictures and scores. Raises BadInput for a folder that holds something
    else, and RunFailed where the installation lacks what ships.
    """
    demo = _Demo(out, plan, on_progress or (lambda line: None))
    demo.start()
    *early, last = plan.sources
    sources = demo.open_sources()
    for name in early:
        demo.train(sources[name])
    rows = [demo.draw("backbone alone", "no adapter", "backbone", ())]
    for place, user in enumerate(plan.users[:-1]):
        rows.append(demo.draw(user, "", user, plan.sources[: place + 1]))
    demo.train(sources[last])
    rows.append(demo.draw(plan.users[-1], "", plan.users[-1], plan.sources))
    facts = tuple(demo.facts(name) for name in plan.sources)
    rows, forgotten = demo.forget_last(rows)
    rows, ruler = demo.score(rows)
    result = DemoResult(
        version=__version__,
        backbone=demo.backbone.name,
        prompts=plan.prompts,
        shown=plan.shown,
        withheld=plan.withheld,
        sources=facts,
        rows=tuple(rows),
        forgotten=forgotten,
        ruler=ruler,
        commands=plan_commands(plan, out.name, rows, forgotten),
        seconds=tuple((part, round(seconds, 1)) for part, seconds in demo.seconds.items()),
        machine=_machine(),
    )
    result.save(out)
    demo.say(f"{write_report(result, out)}: open it in a browser")
    return result


@dataclass
class _Demo:
    """One run: where it writes, what it has loaded, how long each part took."""

    out: Path
    plan: DemoPlan
    say: Say
    seconds: dict[str, float] = field(default_factory=dict)
    generations: dict[str, Generation] = field(default_factory=dict)  # by row

    def start(self) -> None:
        """Load the backbone, draw the first picture, and clear away what an interrupted run left."""
        first_picture = self.out / "first.png"
        self.out.mkdir(parents=True, exist_ok=True)
        if (
            any(self.out.iterdir()) and not first_picture.is_file()
        ):  # an own store, say: its openmoji would go
            raise BadInput(
                f"{self.out} holds other files; give --out a new folder, or one of an earlier demo"
            )
        with self.timed("first picture, with loading"):
            self.backbone = Backbone.load(self.plan.backbone, device=DEVICE)
            store = AdapterStore(self.plan.adapters or shipped("adapters"))
            allowed = store.sources()
            settings = replace(self.plan.generation, num_images=1)
            prompt = self.plan.first_prompt
            with generation_bar("first picture", 1, settings.num_inference_steps) as on_step:
                first = generate(
                    [prompt],
                    allowed=allowed,
                    backbone=self.backbone,
                    store=store,
                    settings=settings,
                    on_step=on_step,
                )
            first.images[0].save(first_picture)
        self.say(f"{first_picture}: {prompt}, from the shipped adapters of {', '.join(allowed)}")
        self.judge = load_judge(self.plan.judge, device=DEVICE)  # a judge that is missing is missed now
        self.store = AdapterStore(self.out / "adapters")
        if self.plan.sources[-1] in self.store.sources():  # the last run stopped before it forgot it
            forget(self.plan.sources[-1], store=self.store)
        shutil.rmtree(self.out / "pictures", ignore_errors=True)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time of the block to `seconds`."""
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

    def open_sources(self) -> dict[str, Source]:
        """Check every picture of every source before anything is trained."""
        root = self.plan.pictures or shipped("emoji") / "demo"
        return {name: Source.open(root / name) for name in self.plan.sources}

    def train(self, source: Source) -> None:
        """Train one source's adapter alone, unless the store has just this one."""
        settings, name = self.plan.training, source.name
        if self.has(source):
            self.say(f"{self.store.root / name}: trained by an earlier run")
            return
        # Outside the store: before the last source is trained, nothing of it is there.
        unfinished = self.out / f"{name}.partial"
        with (
            self.timed(f"training {name}"),
            training_bar(name, settings.steps, settings.rows) as on_step,
        ):
            adapter = train_adapter(source, self.backbone, settings, checkpoint=unfinished, on_step=on_step)
            self.store.add(adapter, replace=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        record = adapter.record
        self.say(f"{self.store.root / name}: {record.items} pictures, {record.license}, trained alone")

    def has(self, source: Source) -> bool:
        """True where the store has this source's adapter, of these pictures, settings and backbone."""
        if source.name not in self.store.sources():
            return False
        record = self.store.record(source.name)
        return (
            same_settings(record.settings, self.plan.training)
            and record.source_digest == source.manifest().merkle_root
            and record.backbone.digest == self.backbone.digest
        )

    def facts(self, name: str) -> SourceFacts:
        """What the report says of a source."""
        r = self.store.record(name)
        return SourceFacts(r.source, r.license, r.author, r.origin, r.attribution, r.items, r.sha256)

    def draw(self, title: str, note: str, folder: str, allowed: Sequence[str]) -> Row:
        """Make the pictures of all prompts from the allowed sources."""
        prompts, settings = self.plan.prompts, self.plan.generation
        with (
            self.timed(f"{len(prompts)} pictures, {title}"),
            generation_bar(title, len(prompts), settings.num_inference_steps) as on_step,
        ):
            made = generate(
                prompts,
                allowed=allowed,
                backbone=self.backbone,
                store=self.store,
                settings=settings,
                on_step=on_step,
            )
        made.save(self.out / "pictures" / folder)
        self.generations[title] = made
        self.say(f"{self.out / 'pictures' / folder}: {len(prompts)} pictures from {_names(allowed)}")
        return Row(title, note, tuple(allowed), f"pictures/{folder}", tuple(made.records))

    def forget_last(self, rows: list[Row]) -> tuple[list[Row], Forgotten]:
        """Forget the last source, draw its user's pictures again, and compare."""
        name, user, reference = self.plan.sources[-1], rows[-1], rows[-2]
        weight_timeline(self.generations[user.title], self.out / "weights.png")
        with self.timed(f"forgetting {name}"):
            receipt = forget(name, store=self.store)
        after = self.draw(
            f"{user.title}, {name} forgotten",
            f"compared with {reference.title}",
            f"{user.title}-without-{name}",
            [source for source in user.allowed if source != name],
        )
        forgotten = self.compared(receipt, reference, user, after)
        self.say(
            f"{name} forgotten: {forgotten.differing} of {forgotten.pixel_bytes} bytes differ from the pictures made "
            f"before it was there; {forgotten.differing_with} differ where it is allowed"
        )
        return [*rows, after], forgotten

    def compared(self, receipt: Receipt, reference: Row, user: Row, after: Row) -> Forgotten:
        """Count the bytes in which rows differ."""
        before = self.out / reference.folder
        files = sorted(path.name for path in before.iterdir() if path.stem != "grid")
        return Forgotten(
            source=self.plan.sources[-1],
            sha256=receipt.sha256,
            files=receipt.files,
            bytes=receipt.bytes,
            reference=reference.title,
            after=after.title,
            pixel_bytes=sum(len(image.tobytes()) for image in self.generations[reference.title].images),
            differing=self.differing(reference, after),
            pictures=len(reference.records),
            equal_files=sum(
                (before / name).read_bytes() == (self.out / after.folder / name).read_bytes()
                for name in files
            ),
            differing_with=self.differing(reference, user),
            refusal=self.refusal(user),
        )

    def differing(self, one: Row, other: Row) -> int:
        """Bytes of the saved pictures of two rows, decoded, that differ."""
        count = 0
        for n in range(len(one.records)):
            paths = [self.out / row.folder / f"{n:04d}.png" for row in (one, other)]
            with Image.open(paths[0]) as first, Image.open(paths[1]) as second:
                difference = ImageChops.difference(first.convert("RGB"), second.convert("RGB"))
            count += sum(byte != 0 for byte in difference.tobytes())
        return count

    def refusal(self, user: Row) -> str:
        """What the user who may use the forgotten source is told when asking for it."""
        try:
            generate(
                self.plan.prompts[:1],
                allowed=user.allowed,
                backbone=self.backbone,
                store=self.store,
                settings=self.plan.generation,
            )
        except UnknownSource as error:
            return str(error)
        return ""

    def score(self, rows: list[Row]) -> tuple[list[Row], Ruler]:
        """Ask the judge about every row's pictures."""
        questions = self.questions()
        write_bytes(self.out / "questions.json", questions_json(questions).encode())
        scored, reports = [], []
        with self.timed("scoring"):
            for row in rows:
                ids = [question.id for question in questions]
                images = {id: self.out / row.folder / f"{id}.png" for id in dict.fromkeys(ids)}
                write_json(self.out / row.folder / "map.json", {id: path.name for id, path in images.items()})
                report = evaluate_tifa(questions, images, self.judge)
                report.save(self.out / "tifa" / f"{Path(row.folder).name}.json")
                reports.append(report)
                scored.append(replace(row, score=Score(report.average, *report.interval)))
                self.say(f"TIFA of {row.title}: {report.average:.2f}")
        return scored, _ruler(reports[0])

    def questions(self) -> tuple[Question, ...]:
        """Questions on the prompts, by rule; wrong choices are things that the collections name."""
        texts = [Text(f"{n:04d}", prompt) for n, prompt in enumerate(self.plan.prompts)]
        root = self.plan.pictures or shipped("emoji") / "demo"
        labels = sorted({label for name in self.plan.sources for label in _labels(root / name)})
        return generate_questions(texts, labels)


def _labels(folder: Path) -> Iterator[str]:
    """What a collection's pictures show, where its metadata says so."""
    path = folder / "metadata.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        label = json.loads(line).get("label", "")
        if label:
            yield label


def _names(allowed: Sequence[str]) -> str:
    return ", ".join(allowed) or "the bare backbone"


def _ruler(report: TifaReport) -> Ruler:
    blind = tuple((name, scores[ALL]) for name, scores in report.baselines.items())
    return Ruler(report.judge, report.captions, report.counts[ALL], blind)


def _machine() -> tuple[tuple[str, str], ...]:
    """The machine in words; neither its name nor a path."""
    system = {"Darwin": "macOS"}.get(platform.system(), platform.system())
    return (
        ("processor cores", str(os.cpu_count())),
        ("architecture", platform.machine()),
        ("system", system),
        *_peak_memory(),
        ("Python", platform.python_version()),
        *((name, version(name)) for name in ("torch", "diffusers", "transformers", "peft")),
    )


def _peak_memory() -> list[tuple[str, str]]:
    """The most memory that this process held, where the system tells."""
    if sys.platform == "win32":
        return []
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes on Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return [("peak memory", f"{peak / 1e9:.1f} GB")]
