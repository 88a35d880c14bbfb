"""The catalogue agrees with the experiments in the code, and every preset can be run."""

import importlib
from pathlib import Path

import pytest

import experiments
from experiments.common import checks
from experiments.common.command_line import parse
from tfrobust.commands import catalogue

FOLDER = Path(experiments.__file__).parent
ENTRIES = {entry["name"]: entry for entry in catalogue.read(FOLDER / "catalogue.toml")}
# without presets
OF_FINISHED_RUNS = "etmann2019-both"


def module_of(entry):
    name = entry["command"].removeprefix("python -m ")
    package = (FOLDER.parent / name.replace(".", "/")).is_dir()
    return importlib.import_module(f"{name}.__main__" if package else name)


def test_every_runnable_module_is_in_the_catalogue():
    runnable = {
        ".".join(path.relative_to(FOLDER.parent).with_suffix("").parts).removesuffix(".__main__")
        for path in FOLDER.rglob("*.py")
        if 'if __name__ == "__main__"' in path.read_text()
    }
    commands = [entry["command"] for entry in ENTRIES.values()]
    assert sorted(commands) == sorted(f"python -m {name}" for name in runnable)


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_presets_are_those_of_the_code(name):
    entry = ENTRIES[name]
    presets = [preset["name"] for preset in entry["presets"]]
    if name == OF_FINISHED_RUNS:
        assert presets == []
        return
    module = module_of(entry)
    assert presets == list(module.PRESETS)
    experiment = getattr(module, "EXPERIMENT", None)
    if experiment is not None:
        assert experiment.name == name
        assert experiment.presets is module.PRESETS


@pytest.mark.parametrize("name", sorted(ENTRIES.keys() - {OF_FINISHED_RUNS}))
def test_every_preset_parses_and_makes_sense(name):
    module = module_of(ENTRIES[name])
    for preset, settings in module.PRESETS.items():
        about = dict.fromkeys(module.PRESETS, "About it.")
        command = parse(module.PRESETS, name, ["--preset", preset], about=about)
        assert (command.preset, command.settings) == (preset, settings)
        assert command.out == Path(f"runs/{name}-{preset}")
        experiment = getattr(module, "EXPERIMENT", None)
        if experiment is not None:
            assert preset in experiment.about
            checks.check(command.settings)
            experiment.check_settings(command.settings, None)
            members = experiment.members(command.settings)
            assert len({member.folder for member in members}) == len(members) > 0
