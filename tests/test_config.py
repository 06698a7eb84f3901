"""Settings: the default, then the file, then the flag; what is refused is refused in one clear line."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path

import pytest

from promptcdm.config import read_config, setting_types, settle
from promptcdm.errors import BadInput
from promptcdm.flags import read_names, read_strengths, with_flags
from promptcdm.settings import BackboneSettings, GenerateSettings, TrainSettings

KINDS = (BackboneSettings, TrainSettings, GenerateSettings)
CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.toml"))


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    config = read_config(_file(tmp_path, "rank = 4\nsteps = 7\n"), KINDS)
    settings = settle(TrainSettings, config, {"steps": "9", "batch_size": None})
    assert (settings.rank, settings.steps, settings.batch_size) == (4, 9, TrainSettings().batch_size)


def test_nothing_given_is_the_default() -> None:
    flags = dict.fromkeys(setting_types(TrainSettings))
    assert settle(TrainSettings, {}, flags) == TrainSettings()


def test_each_type_of_flag_is_read() -> None:
    flags = {"learning_rate": "3e-4", "flip": True, "kind": "prompt", "seed": "5", "trigger": "7"}
    settings = settle(TrainSettings, {}, flags)
    assert settings == TrainSettings(kind="prompt", learning_rate=3e-4, flip=True, seed=5, trigger="7")


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("steps", "many", "--steps is 'many'; it takes a whole number"),
        ("steps", "1.5", "--steps is '1.5'; it takes a whole number"),
        ("learning_rate", "fast", "--learning-rate is 'fast'; it takes a number"),
        ("learning_rate", "nan", "--learning-rate is 'nan'; it takes a number"),
        ("kind", "dora", "--kind is 'dora'; it takes lora or prompt or lora+prompt or none"),
    ],
)
def test_a_wrong_flag_says_what_it_takes(flag: str, value: str, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        settle(TrainSettings, {}, {flag: value})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rnak = 4", "unknown setting 'rnak'; did you mean rank\\? known are .*batch_size.*top_k"),
        ("rank = 'four'", "rank is 'four'; it takes a whole number"),
        ("rank = true", "rank is True; it takes a whole number"),
        ("flip = 1", "flip is 1; it takes true or false"),
        ("min_snr = inf", "min_snr is inf; it takes a number"),
        ("router = 'magic'", "router is 'magic'; it takes uniform or prior"),
        ("rank = ", "not TOML"),
        ("[train]\nrank = 4", "unknown setting 'train'"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_config(_file(tmp_path, text), KINDS)


def test_a_whole_number_is_a_number(tmp_path: Path) -> None:
    config = read_config(_file(tmp_path, "guidance_scale = 7"), KINDS)
    assert settle(GenerateSettings, config, {}).guidance_scale == 7.0


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        read_config(tmp_path / "none.toml", KINDS)
    with pytest.raises(BadInput, match="Is a directory"):
        read_config(tmp_path, KINDS)
    (tmp_path / "latin.toml").write_bytes(b"trigger = '\xe9'")
    with pytest.raises(BadInput, match="not TOML"):
        read_config(tmp_path / "latin.toml", KINDS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_file_holds_only_differences(path: Path) -> None:
    config = read_config(path, KINDS)
    defaults = {field.name: field.default for kind in KINDS for field in fields(kind)}
    same = {key for key, value in config.items() if value == defaults[key]}
    assert config["backbone"]
    assert same <= {"backbone"}, f"{path.name} repeats defaults: {same}"


def test_there_are_four_shipped_files() -> None:
    assert [path.stem for path in CONFIGS] == ["nano", "sd15", "sd21", "sdxl"]


def test_every_setting_has_help_and_one_meaning() -> None:
    """One flat file serves all: a key of two classes has one type in both."""
    types: dict[str, object] = {}
    for kind in KINDS:
        assert all(field.metadata["help"] for field in fields(kind))
        for name, hint in setting_types(kind).items():
            assert types.setdefault(name, hint) == hint


def test_flags_are_the_fields() -> None:
    @with_flags(BackboneSettings, TrainSettings)
    def command(source: str, trigger: str = "", **flags: object) -> None: ...

    names = list(inspect.signature(command).parameters)
    expected = [*setting_types(BackboneSettings), *setting_types(TrainSettings)]
    expected.remove("trigger")  # a command's own flag of that name stands
    assert names == ["source", "trigger", *expected]


def test_names_and_strengths() -> None:
    assert read_names("") == read_names(" ") == []
    assert read_names("a, b") == ["a", "b"]
    with pytest.raises(BadInput, match="with commas"):
        read_names("a,,b")
    assert read_strengths([]) == {}
    assert read_strengths(["a=0.8", "b=1,c=2"]) == {"a": 0.8, "b": 1.0, "c": 2.0}
    for wrong in ("a", "a=x", "=", "a=nan", "=1"):
        with pytest.raises(BadInput, match="NAME=NUMBER"):
            read_strengths([wrong])
