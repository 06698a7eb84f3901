"""The command line: what it refuses, in which words, and that it does what the Python functions do."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from made_adapter import made_adapter
from PIL import Image
from typer.main import get_command

from promptcdm import __version__
from promptcdm.cli import app
from promptcdm.config import setting_types
from promptcdm.settings import BackboneSettings, GenerateSettings, TrainSettings
from promptcdm.store import AdapterStore

Run = Callable[..., tuple[int, str, str]]
ToySource = Callable[..., Path]
NOTHING = Path("nothing")


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    """The default store of the folder that `run` works in, with two sources."""
    filled = AdapterStore(tmp_path / "adapters")
    filled.add(made_adapter("birds"))
    filled.add(made_adapter("cars", seed=1))
    return filled


def _refused(result: tuple[int, str, str], words: str, code: int = 2) -> None:
    """Assert one line on standard error that holds `words`, nothing on standard output."""
    assert result[0] == code
    assert result[1] == ""
    assert result[2].startswith("promptcdm: ") and result[2].count("\n") == 1, result[2]
    assert words in result[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "a bird"], "Missing option '--allowed'; see promptcdm generate --help"),
        (["generate", "--allowed", "a"], "Missing argument 'PROMPT'"),
        (["generate", "a bird", "--allowed", "a,,b"], "--allowed is 'a,,b'; it takes names"),
        (["generate", "a bird", "--allowed", "a", "--strength", "a"], "--strength is 'a'; it takes NAME=NUM"),
        (["generate", "a bird", "--allowed", "a", "--router", "magic"], "--router is 'magic'; it takes unif"),
        (["generate", "a bird", "--allowed", "a", "--seed", "x"], "--seed is 'x'; it takes a whole number"),
        (["generate", "a bird", "--allowed", "a", "--sed", "1"], "No such option: --sed"),
        (["generate", "a bird", "--allowed", "a", "--config", NOTHING], "config nothing: No such file"),
        (
            ["train-adapter", "--source", "birds"],
            "--source birds is no folder; give its pictures with --data",
        ),
        (["train-adapter", "--source", "birds", "--data", NOTHING], "nothing: no such folder"),
        (["train-adapter", "--source", "a", "--data", NOTHING, "--steps", "1.5"], "--steps is '1.5'"),
        (["train-adapter"], "--source is missing"),
        (["train-adapter", "--all", NOTHING, "--source", "a"], "--all takes each source's name"),
        (["train-adapter", "--all", NOTHING, "--license", "MIT"], "--all takes each source's name"),
        (["train-adapter", "--all", NOTHING], "nothing: no such folder"),
        (["forget", "birds"], "add --yes where nobody can answer"),
        (["forget", "birds", "--yes"], "no source 'birds' that you may use"),
        (["verify", "birds"], "no source 'birds' that you may use"),
        (["evaluate"], "Missing command; see promptcdm evaluate --help"),
        (["evaluate", "tifa"], "Missing option '--questions'"),
        (["evaluate", "tifa", "--questions", NOTHING, "--images", NOTHING], "nothing: no such file"),
        (["draw"], "No such command 'draw'; see promptcdm --help"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    run: Run, tmp_path: Path, arguments: Sequence[object], words: str
) -> None:
    _refused(run(*arguments), words)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_source_lists_every_problem(run: Run, tmp_path: Path, toy_source: ToySource) -> None:
    folder = toy_source(tmp_path, "shapes", "red")
    (folder / "small-circle.png").write_bytes((folder / "small-circle.png").read_bytes()[:60])
    Image.new("RGB", (64, 64)).save(folder / "uncaptioned.png")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run("train-adapter", "--source", folder)
    first, *problems = err.splitlines()
    assert (code, out) == (2, "")
    assert first.startswith("promptcdm: ") and "shapes" in first
    assert all(line.startswith("  ") for line in problems)
    assert any("small-circle.png" in line for line in problems)
    assert any("uncaptioned.png" in line for line in problems)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = run("train-adapter", "--source", "empty")
    assert code == 2
    assert "holds no picture" in err
    assert not (tmp_path / "adapters").exists()


def test_large_pictures_are_not_for_the_default_backbone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (300, 256)).save(tmp_path / "photos" / f"{name}.png")
        (tmp_path / "photos" / f"{name}.txt").write_text("a photo")
    code, _, err = run("train-adapter", "--source", "photos")
    assert code == 2
    assert err.splitlines()[-1].startswith("promptcdm: 2 of 2 pictures have 256 px or more")
    assert "--backbone" in err


def test_a_source_that_is_there_is_not_trained_again(
    run: Run, tmp_path: Path, toy_source: ToySource, store: AdapterStore
) -> None:
    toy_source(tmp_path, "birds", "red")
    _refused(run("train-adapter", "--source", "birds"), "birds exists; --replace")
    assert store.sources() == ["birds", "cars"]


def test_version_and_help(run: Run) -> None:
    assert run("--version") == (0, f"promptcdm {__version__}\n", "")
    code, out, err = run("--help")
    assert (code, err) == (0, "") and "train-adapter" in out
    assert run() == (0, out, "")


@pytest.mark.parametrize(
    ("command", "kinds"),
    [
        ("train-adapter", (BackboneSettings, TrainSettings)),
        ("generate", (BackboneSettings, GenerateSettings)),
        ("import-adapter", (BackboneSettings,)),
    ],
)
def test_every_setting_is_a_flag(run: Run, command: str, kinds: tuple[type, ...]) -> None:
    _, out, _ = run(command, "--help")
    for kind in kinds:
        for name in setting_types(kind):
            assert f"--{name.replace('_', '-')} " in out, name


def test_every_command_has_help() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        assert command.help, name
        for parameter in command.params:
            assert parameter.help, f"{name} {parameter.name}"


def test_the_page_of_commands_is_what_the_commands_say() -> None:
    docs = Path(__file__).parent.parent / "docs"
    namespace: dict[str, object] = {"__name__": "make_cli_page"}
    script = docs / "make_cli_page.py"
    exec(compile(script.read_text(encoding="utf-8"), str(script), "exec"), namespace)
    page = namespace["page"]
    assert callable(page)
    assert page() == (docs / "cli.md").read_text(encoding="utf-8"), "run make docs"


def test_sources_are_listed(run: Run, store: AdapterStore) -> None:
    code, out, err = run("sources")
    header, *rows = out.splitlines()
    assert (code, err) == (0, "")
    assert header.split() == ["source", "kind", "pictures", "license", "author", "backbone", "sha256"]
    assert [row.split()[0] for row in rows] == ["birds", "cars"]
    _, printed, _ = run("sources", "--json")
    records = json.loads(printed)
    assert [record["source"] for record in records] == ["birds", "cars"]
    assert records[0]["sha256"] == store.load("birds").sha256


def test_no_sources(run: Run) -> None:
    assert run("sources", "--json") == (0, "[]\n", "")
    assert run("verify") == (0, "", "")


def test_verify_names_what_was_changed(run: Run, store: AdapterStore, tmp_path: Path) -> None:
    code, out, _ = run("verify")
    assert code == 0 and [line.split(":")[0] for line in out.splitlines()] == ["birds", "cars"]
    weights = tmp_path / "adapters" / "cars" / "pytorch_lora_weights.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    code, out, err = run("verify")
    assert code == 1
    assert out.splitlines()[0].startswith("birds: ok, sha256")
    assert out.splitlines()[1].startswith("cars: ") and "digest" in out.splitlines()[1]
    assert err == "promptcdm: 1 of 2 sources do not match their digests\n"
    assert run("verify", "birds")[0] == 0


def test_forget_prints_a_receipt(run: Run, store: AdapterStore, tmp_path: Path) -> None:
    digest = store.load("cars").sha256
    code, out, err = run("forget", "cars", "--yes")
    assert (code, err) == (0, "")
    assert digest in out
    assert store.sources() == ["birds"]
    assert not (tmp_path / "adapters" / "cars").exists()


@pytest.mark.model  # importing the judges takes seconds
def test_tifa_is_scored(run: Run, tmp_path: Path) -> None:
    question = {
        "id": "one",
        "caption": "a red square",
        "element": "red",
        "element_type": "color",
        "question": "is the square red?",
        "choices": ["yes", "no"],
        "answer": "yes",
    }
    (tmp_path / "questions.json").write_text(json.dumps([question]))
    Image.new("RGB", (8, 8), "red").save(tmp_path / "one.png")
    (tmp_path / "map.json").write_text(json.dumps({"one": "one.png"}))
    arguments = ("--questions", "questions.json", "--images", "map.json", "--judge", "always-yes")
    code, out, err = run("evaluate", "tifa", *arguments, "--out", "result.json")
    assert (code, err) == (0, "")
    assert "1.000" in out
    assert json.loads((tmp_path / "result.json").read_text())["tifa_average"] == 1.0
    assert len((tmp_path / "result.judgements.jsonl").read_text().splitlines()) == 1
    _refused(run("evaluate", "tifa", *arguments[:5], "sphinx"), "judge 'sphinx' is not known")


TRAIN = ("--steps", 2, "--batch-size", 2, "--rank", 2, "--device", "cpu")
DRAW = ("--num-inference-steps", 2, "--device", "cpu", "--seed", 3)


@pytest.fixture
def trained(run: Run, tmp_path: Path, toy_source: ToySource, tiny_sd1: Path) -> Run:
    """`run` in a folder with two trained sources, red and blue."""
    for name, colour in (("reds", "red"), ("blues", "blue")):
        folder = toy_source(tmp_path / "pictures", name, colour)
        code, out, err = run("train-adapter", "--source", folder, "--backbone", tiny_sd1, *TRAIN)
        assert code == 0, err
        assert out.startswith(f"adapters/{name}: lora, 6 pictures, CC0-1.0, sha256 ")
        assert f"{name}: 2 of 2, loss " in err
    assert sorted(path.name for path in (tmp_path / "adapters").iterdir() if path.is_dir()) == [
        "blues",
        "reds",
    ]
    return run


def test_many_sources_train_by_one_command(
    run: Run, tmp_path: Path, toy_source: ToySource, tiny_sd1: Path
) -> None:
    for name, colour in (("reds", "red"), ("blues", "blue")):
        toy_source(tmp_path / "pictures", name, colour)
    (tmp_path / "pictures" / "empty").mkdir()
    code, out, err = run("train-adapter", "--all", tmp_path / "pictures", "--backbone", tiny_sd1, *TRAIN)
    assert code == 1
    assert err.endswith("promptcdm: 1 of 3 sources failed; the same command tries them again\n")
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [
        ["blues", "trained"],
        ["empty", "failed"],
        ["reds", "trained"],
    ]
    (tmp_path / "pictures" / "empty").rmdir()
    code, out, err = run("train-adapter", "--all", tmp_path / "pictures", "--backbone", tiny_sd1, *TRAIN)
    assert code == 0, err
    assert [line.split()[1] for line in out.splitlines()[1:]] == ["kept", "kept"]


def test_train_then_generate(trained: Run, tmp_path: Path, tiny_sd1: Path) -> None:
    draw = ("generate", "a large square", "--backbone", tiny_sd1, *DRAW)
    code, out, err = trained(*draw, "--allowed", "reds,blues")
    assert code == 0, err
    assert out.startswith("out/0000.png: reds ") and "blues" in out
    record = json.loads((tmp_path / "out" / "0000.json").read_text())
    assert record["allowed"] == ["reds", "blues"] and record["seed"] == 3
    code, out, _ = trained(*draw, "--allowed", "", "--out", "bare", "--num-images", 2)
    assert (code, out) == (0, "bare/0000.png: bare backbone\nbare/0001.png: bare backbone\n")
    assert sorted(path.name for path in (tmp_path / "bare").iterdir()) == [
        "0000.json",
        "0000.png",
        "0001.json",
        "0001.png",
        "grid.png",
    ]
    again = trained(*draw, "--allowed", "reds,blues", "--out", "again")
    assert again[0] == 0
    for name in ("0000.png", "0000.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert (tmp_path / "bare" / "0000.png").read_bytes() != (tmp_path / "out" / "0000.png").read_bytes()
    _refused_at_last(trained(*draw, "--allowed", "greens", "--out", "none"), "no source 'greens'")
    assert not (tmp_path / "none").exists()


def test_a_lora_of_another_tool_is_imported(trained: Run, tmp_path: Path, tiny_sd1: Path) -> None:
    theirs = tmp_path / "adapters" / "reds" / "reds.safetensors"  # kohya's keys
    command = ("import-adapter", theirs, "--backbone", tiny_sd1, "--source")
    code, out, err = trained(*command, "theirs", "--license", "MIT", "--unconditional", "backbone")
    assert code == 0, err
    assert out.startswith("adapters/theirs: lora, 0 pictures, MIT, sha256 ")
    _refused_at_last(trained(*command, "theirs"), "theirs exists; --replace")
    draw = ("generate", "a square", "--backbone", tiny_sd1, *DRAW)
    _refused_at_last(trained(*draw, "--allowed", "theirs"), "theirs does not have")
    assert trained(*draw, "--allowed", "theirs", "--router", "uniform", "--out", "imported")[0] == 0
    assert trained(*draw, "--allowed", "reds", "--router", "uniform", "--out", "own")[0] == 0
    assert trained(*draw, "--allowed", "", "--out", "bare")[0] == 0
    pictures = {name: (tmp_path / name / "0000.png").read_bytes() for name in ("imported", "own", "bare")}
    assert _pixels(pictures["imported"]) == _pixels(pictures["own"]) != _pixels(pictures["bare"])


def test_strength_metadata_and_figure(trained: Run, tmp_path: Path, tiny_sd1: Path) -> None:
    draw = ("generate", "a square", "--backbone", tiny_sd1, *DRAW, "--allowed", "reds")
    assert trained(*draw, "--out", "whole", "--weights-figure")[0] == 0
    assert (tmp_path / "whole" / "weights.png").read_bytes().startswith(b"\x89PNG")
    assert trained(*draw, "--out", "none", "--strength", "reds=0", "--no-metadata")[0] == 0
    assert trained(*draw[:-1], "", "--out", "bare")[0] == 0
    pictures = {name: (tmp_path / name / "0000.png").read_bytes() for name in ("whole", "none", "bare")}
    assert b"parameters" in pictures["whole"] and b"parameters" not in pictures["none"]
    assert _pixels(pictures["none"]) == _pixels(pictures["bare"]) != _pixels(pictures["whole"])


def _pixels(png: bytes) -> bytes:
    return Image.open(io.BytesIO(png)).tobytes()


def test_the_command_makes_what_python_makes(trained: Run, tmp_path: Path, tiny_sd1: Path) -> None:
    from promptcdm import AdapterStore, Backbone, Source, generate, train_adapter

    backbone = Backbone.load(tiny_sd1, device="cpu")
    settings = TrainSettings(steps=2, batch_size=2, rank=2)
    adapter = train_adapter(Source.open(tmp_path / "pictures" / "reds"), backbone, settings)
    store = AdapterStore(tmp_path / "adapters")
    assert adapter.sha256 == store.load("reds").sha256
    drawn = GenerateSettings(num_inference_steps=2, seed=3)
    generate(["a square"], allowed=["reds"], backbone=backbone, store=store, settings=drawn).save(
        tmp_path / "python"
    )
    code, _, err = trained("generate", "a square", "--allowed", "reds", "--backbone", tiny_sd1, *DRAW)
    assert code == 0, err
    for name in ("0000.png", "0000.json"):
        assert (tmp_path / "python" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def _refused_at_last(result: tuple[int, str, str], words: str) -> None:
    """As `_refused`, after notes of what was loaded."""
    last = result[2].splitlines()[-1]
    assert result[:2] == (2, "")
    assert last.startswith("promptcdm: ") and words in last, last
