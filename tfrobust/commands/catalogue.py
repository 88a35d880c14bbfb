"""`tfrobust list`: the experiments of the repository, and what each preset needs and costs."""

from __future__ import annotations

import dataclasses
import json
import textwrap
import tomllib
from pathlib import Path
from typing import Any

from tfrobust.commands.terminal import existing_file
from tfrobust.errors import InputError, MissingFileError

__all__ = ["Command", "execute", "read"]

_FILE = "catalogue.toml"
_EXPERIMENT = ("name", "study", "command", "what")
_PRESET = ("name", "needs", "cost")


@dataclasses.dataclass(frozen=True)
class Command:
    """List every experiment with the needs and costs of its presets."""

    experiments: Path | None = None
    """Folder `experiments` of a checkout; default: of the package's checkout, or in this folder."""
    json: bool = False
    """Print JSON: a list of experiments, each with a list of presets, all values text."""


def execute(command: Command) -> None:
    """Print the catalogue.

    Raises:
        MissingFileError: no folder has a catalogue.
        InputError: the catalogue is malformed.
    """
    experiments = read(_find(command.experiments))
    print(json.dumps(experiments, indent=2) if command.json else _text(experiments))


def read(path: Path) -> list[dict[str, Any]]:
    """Experiments as dictionaries with keys name, study, command, what and presets.

    Args:
        path: of a TOML file of tables [[experiment]], each with tables [[experiment.preset]] of
            name, needs and cost.

    Raises:
        InputError: not TOML, or a key is missing or not a string.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8")).get("experiment", [])
    except ValueError as error:  # also for bytes that are not UTF-8
        raise InputError(f"{path} is no TOML file: {error}") from error
    return [
        {
            **_texts(table, _EXPERIMENT, path),
            "presets": [_texts(preset, _PRESET, path) for preset in table.get("preset", [])],
        }
        for table in tables
    ]


def _texts(table: dict[str, Any], keys: tuple[str, ...], path: Path) -> dict[str, str]:
    for key in keys:
        if not isinstance(table.get(key), str):
            raise InputError(f"{path}: {table.get('name', 'a table')} has no text {key!r}")
    return {key: table[key] for key in keys}


def _find(folder: Path | None) -> Path:
    if folder is not None:
        return existing_file(folder / _FILE, "catalogue")
    checkout = Path(__file__).parents[2]
    for candidate in (checkout / "experiments", Path.cwd() / "experiments"):
        if (candidate / _FILE).is_file():
            return candidate / _FILE
    raise MissingFileError(
        "no experiments here: they come with the repository, not with the installed package. "
        "Clone it and run the command inside, or name its folder: --experiments FOLDER"
    )


def _text(experiments: list[dict[str, Any]]) -> str:
    """One paragraph per experiment, one item per preset."""
    paragraphs = []
    for experiment in experiments:
        lines = [
            f"{experiment['name']} ({experiment['study']})",
            *_wrapped(experiment["what"], "  "),
        ]
        lines.append(f"  {experiment['command']}")
        width = max((len(preset["name"]) for preset in experiment["presets"]), default=0)
        for preset in experiment["presets"]:
            start = f"    {preset['name']:{width}}  "
            summary = f"{preset['cost']}; needs {preset['needs']}"
            lines += _wrapped(summary, start, " " * len(start))
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)


def _wrapped(text: str, start: str, then: str | None = None) -> list[str]:
    return textwrap.wrap(
        text,
        96,
        initial_indent=start,
        subsequent_indent=start if then is None else then,
        break_long_words=False,
        break_on_hyphens=False,
    )
