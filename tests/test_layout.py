"""The rules of the code base, as tests: layers, homes of libraries, sizes, and what must not be written.

A module of the package stands in one layer and imports only from layers below it, so that whoever reads it
knows what it cannot depend on. CONTRIBUTING.md draws the picture.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "promptcdm"

# Lowest first; the members of a layer do not import each other.
LAYERS = [
    {"errors", "settings"},
    {
        "compose",
        "router",
        "shares",
        "left_out",
        "statistics",
        "counted",
        "prompt",
        "tensorfile",
        "manifest",
        "places",
        "picture",
        "shipped",
    }
    | {
        "question_words",
        "kohya_names",
        "text_names",
        "config",
        "progress",
        "row_plan",
        "store_lock",
        "versions",
        "cached_forward",
        "text_memory",
        "device_class",
        "intervals",
        "buckets",
        "learning_rate",
        "weight_average",
        "keyed_random",
        "halves",
        "square_picture",
        "sealed_names",
        "tracker",
        "processes",
    }
    | {"feature_pair", "jackknife", "tower", "colours"},
    {"caption_words", "palette", "choice_likelihood"},
    {"draw", "prompt_prior", "regional", "exact_share", "embedded_tower", "sscd", "beside"}
    | {"frechet", "mmd", "manifold", "inception", "dinov2", "clip_tower", "picture_folder"}
    | {
        "captions",
        "shards",
        "table",
        "questions",
        "adapter_record",
        "source_statistics",
        "lora",
        "levers",
        "lora_strength",
        "checkpoint",
        "caption_chunks",
        "paired",
        "calibration",
    }
    | {"flags", "demo_result", "page", "human_ratings"},
    {"layouts", "nearest", "separation", "made_pictures", "sealed_network"},
    {"source", "switched_off"},
    {"slices", "preflight", "clip_tokenizer", "training_neighbours"},
    {"kid", "cmmd", "features"}
    | {
        "lora_format",
        "slots",
        "question_rules",
        "statements",
        "answer",
        "demo_plan",
        "verdict",
        "hub_revision",
    },
    {
        "model_card",
        "engine",
        "text_lora",
        "nano_judge",
        "sealed_judge",
        "known_pictures",
        "judge_errors",
        "hf_judge",
        "openai_judge",
        "made_of",
        "open_clip_model",
    }
    | {"judgements", "tifa", "soft_tifa", "vqascore", "dsg", "agreement", "compbench", "counterfactual"}
    | {"question_llm", "question_recall", "hf_writer"},
    {"adapter", "judge", "feature_cache", "asking", "alignment", "geneval", "replay"},
    {"erased"},
    {"store", "backbone"} | {"fidelity_figures", "question_files", "evaluation_run", "question_making"},
    {"source_view", "picture_view", "run_comparison", "clipscore", "encoding_cache"},
    {"route", "source_text", "evaluation_report", "encoded_source"},
    {"terms", "batch", "onlooker"},
    {"held_out", "learned", "activations"},
    {"composed_unet", "train", "forget", "export", "reference"},
    {"train_slices", "fixed_noise"},
    {"retrain", "source_errors"},
    {"generate", "import_adapter", "attribute", "evaluate", "train_all", "forget_items", "train_plan"}
    | {"fidelity"},
    {"timeline", "ledger", "membership", "looking_on", "sample_statistics"},
    {"report", "leakage_report"},
    {"demo", "leakage"},
    {"cli_evaluate", "cli_export", "cli_preflight"},
    {"cli_train"},
    {"cli_attribute", "cli_compare", "cli_clipscore", "cli_questions"},
    {"cli_store"},
    {"cli"},
    {"__main__"},
]
COMMANDS = {path.stem for path in PACKAGE.glob("cli*.py")}
# A library appears in these modules and in no other, so that its next version is met in one place.
HOMES = {
    "accelerate": {"processes", "tracker"},
    "diffusers": {"backbone", "composed_unet", "generate"},
    "fsspec": {"places"},
    "huggingface_hub": {"import_adapter"},
    "jinja2": {"page"},
    "matplotlib": {"timeline"},
    "open_clip": {"nano_judge", "clip_tower", "open_clip_model"},
    "peft": {"lora"},
    "pyarrow": {"table"},
    "pydantic": {"adapter_record", "manifest", "forget"},
    "rich": {"progress", "demo"},
    "safetensors": {"tensorfile"},
    "timm": {"dinov2"},
    "transformers": {"backbone", "hf_judge", "dinov2", "clip_tower", "clip_tokenizer", "hf_writer"},
    "typer": {*COMMANDS, "flags"},
}
# The method itself: torch, the standard library, and our errors.
METHOD = {"compose": {"torch", "promptcdm"}, "router": {"torch", "promptcdm"}}
MAY_PRINT = COMMANDS
MAY_IMPORT_LATE = COMMANDS | {"places", "table"}  # `--help` must not wait for torch; extras may not be there
LINES, FUNCTION_LINES = 400, 60
HELP_SECONDS = 0.3

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
TREES = {name: ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8")) for name in MODULES}
each_module = pytest.mark.parametrize("name", MODULES)


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of every module that is imported, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            if node.module == "promptcdm":
                yield from (f"promptcdm.{alias.name}" for alias in node.names)


def ours(name: str) -> set[str]:
    """Modules of the package that a module imports."""
    parts = (dotted.split(".") for dotted in imported(TREES[name]))
    return {part[1] for part in parts if part[0] == "promptcdm" and len(part) > 1 and part[1] in MODULES}


def layer(name: str) -> int:
    found = [i for i, members in enumerate(LAYERS) if name in members]
    assert len(found) == 1, f"give {name}.py one layer in LAYERS of this test"
    return found[0]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Public functions and classes, and the public methods of public classes."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name[0] != "_":
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{node.name}.")


@each_module
def test_a_module_imports_only_from_lower_layers(name: str) -> None:
    upward = {other for other in ours(name) if layer(other) >= layer(name)}
    assert not upward, f"{name}.py imports {sorted(upward)}, not below it"


def test_no_import_is_circular() -> None:
    below: dict[str, set[str]] = {name: ours(name) for name in MODULES}
    while leaves := [name for name, others in below.items() if not others]:
        for leaf in leaves:
            del below[leaf]
        for others in below.values():
            others.difference_update(leaves)
    assert not below, f"in a circle, or above one: {sorted(below)}"


@each_module
def test_libraries_stay_at_home(name: str) -> None:
    used = {dotted.split(".")[0] for dotted in imported(TREES[name])}
    strayed = {library for library in used & set(HOMES) if name not in HOMES[library]}
    assert not strayed, f"{name}.py imports {sorted(strayed)}; their homes are in HOMES of this test"
    if name in METHOD:
        outside = {library for library in used if library not in sys.stdlib_module_names} - METHOD[name]
        assert not outside, f"{name}.py is the method and imports {sorted(outside)}"


def test_only_main_imports_the_command_line() -> None:
    assert {name for name in MODULES if "cli" in ours(name)} <= {"__main__"}


@each_module
def test_imports_stand_at_the_top(name: str) -> None:
    late = [f.name for f in functions(TREES[name]) if any(imported(f))]
    assert not late or name in MAY_IMPORT_LATE, f"{name}.py imports inside {late}"


@each_module
def test_files_and_functions_fit_a_screen_or_two(name: str) -> None:
    lines = len((PACKAGE / f"{name}.py").read_text(encoding="utf-8").splitlines())
    assert lines <= LINES, f"{name}.py has {lines} lines; one idea a file"
    long = {
        f.name: n
        for f in functions(TREES[name])
        if (n := (f.end_lineno or 0) - f.lineno + 1) > FUNCTION_LINES
    }
    assert not long, f"{name}.py has functions of more than {FUNCTION_LINES} lines: {long}"


@each_module
def test_public_names_are_documented(name: str) -> None:
    tree = TREES[name]
    assert ast.get_docstring(tree), f"{name}.py has no docstring"
    bare = [title for title, node in public(tree.body) if not ast.get_docstring(node)]  # type: ignore[arg-type]
    assert not bare, f"{name}.py: without a docstring: {bare}"


@each_module
def test_errors_are_neither_hidden_nor_widened(name: str) -> None:
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else ""
            assert caught and not re.search(r"\b(Base)?Exception\b", caught), (
                f"{name}.py:{node.lineno} catches all"
            )
        if isinstance(node, ast.keyword) and node.arg == "strict" and isinstance(node.value, ast.Constant):
            assert node.value.value is True, f"{name}.py:{node.value.lineno} is not strict"


@each_module
def test_nothing_unpickles_and_only_the_command_line_prints(name: str) -> None:
    used = {dotted.split(".")[0] for dotted in imported(TREES[name])}
    assert not used & {"pickle", "dill", "cloudpickle", "shelve", "marshal"}
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            assert call not in ("torch.load", "torch.save", "eval", "exec"), f"{name}.py:{node.lineno} {call}"
            assert call != "print" or name in MAY_PRINT, f"{name}.py:{node.lineno} prints"


def test_nothing_is_left_undone() -> None:
    marks = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX)\b")
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "eval").rglob("*.py")]:
        assert not marks.search(path.read_text(encoding="utf-8")), path


def test_the_wheel_holds_what_shipped_looks_for() -> None:
    from promptcdm.shipped import _IN_CHECKOUT

    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["sources"] == {path: f"promptcdm/shipped/{name}" for name, path in _IN_CHECKOUT.items()}
    assert wheel["only-include"] == ["promptcdm", *wheel["sources"]]


def test_every_dependency_is_pinned_and_every_import_is_one() -> None:
    def names(lines: list[str]) -> set[str]:
        found = (re.match(r"[A-Za-z0-9_.-]+", line) for line in lines)
        return {match[0].lower().replace("-", "_") for match in found if match}

    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    wanted = names(project["dependencies"])
    pinned = names((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    assert wanted.union(*(names(extra) for extra in extras.values())) <= pinned
    used = {dotted.split(".")[0] for tree in TREES.values() for dotted in imported(tree)}
    packages = {"PIL": "pillow", "open_clip": "open_clip_torch"}
    libraries = {packages.get(name, name) for name in used - set(sys.stdlib_module_names) - {"promptcdm"}}
    assert libraries <= wanted | names(extras["datasets"]) | names(extras["remote"]) | {"tomllib"}


def test_public_names_exist_and_are_listed_once() -> None:
    """The lazy table, the imports that type checkers read and `__all__` say the same."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    typed = {
        alias.name: (node.module or "").split(".")[1]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("promptcdm.")
        for alias in node.names
    }
    import promptcdm

    assert typed == promptcdm._HOMES
    for name, home in typed.items():
        defined = {n.name for n in TREES[home].body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        assert name in defined, f"promptcdm.{home} defines no {name}"


def test_the_function_is_not_hidden_by_the_module_of_its_name() -> None:
    code = (
        "import sys, types, promptcdm\n"
        "sys.modules['promptcdm.generate'] = types.ModuleType('promptcdm.generate')\n"
        "sys.modules['promptcdm.generate'].generate = len\n"
        "promptcdm.generate = sys.modules['promptcdm.generate']\n"  # what importing the module does
        "assert promptcdm.generate is len\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from promptcdm.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'peft', 'numpy', 'PIL', 'matplotlib', 'pydantic'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.PIPE)


def test_help_takes_a_blink() -> None:
    """Processor time, the best of five, so that a busy machine does not fail it."""
    resource = pytest.importorskip("resource")  # not on Windows
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "promptcdm", "--help"], check=True, cwd=ROOT, stdout=subprocess.PIPE
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) <= HELP_SECONDS, seconds
