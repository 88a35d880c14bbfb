"""The command line of every experiment: a preset, and overrides of single settings."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from tfrobust.errors import InputError

__all__ = ["Command", "parse"]


@dataclasses.dataclass(frozen=True)
class Command:
    """What the user asked for."""

    settings: Any
    preset: tyro.conf.Suppress[str]
    out: Path
    """Folder of the results."""
    data_dir: Path | None = None
    """Folder of prepared data sets; default: TFROBUST_DATA_DIR."""
    open: bool = False
    """Open the page at the end."""
    strategy: Literal["auto", "one", "mirrored", "multi_worker"] = "auto"
    """One device, all GPUs of this machine, or several machines."""
    scheduler: str | None = None
    """Train the classifiers on the workers of this Dask scheduler, tcp://HOST:8786."""


def parse(
    presets: Mapping[str, Any],
    name: str,
    arguments: Sequence[str] | None = None,
    *,
    about: Mapping[str, str],
) -> Command:
    """Read the preset, where and how to run, and overrides of the preset's settings.

    Args:
        presets: settings dataclasses by name, all of one class; the first is the default.
        name: of the experiment; the default folder is runs/<name>-<preset>.
        arguments: the command line; sys.argv where None.
        about: one sentence per preset, for `--help`.

    Raises:
        SystemExit: unknown preset or setting, or malformed value, with a message (status 2).
        InputError: --scheduler and --strategy exclude each other.
    """
    arguments = _preset_first(sys.argv[1:] if arguments is None else arguments, next(iter(presets)))
    known = "\n".join(f"--preset {preset}: {about[preset]}" for preset in presets)
    command = tyro.extras.overridable_config_cli(
        {
            preset: (
                f"{known}\nBelow, the settings of --preset {preset}.",
                Command(settings, preset, Path("runs") / f"{name}-{preset}"),
            )
            for preset, settings in presets.items()
        },
        prog=name,
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if command.scheduler and command.strategy not in ("auto", "one"):
        raise InputError("--scheduler gives each classifier to one worker: leave --strategy out")
    return command


def _preset_first(arguments: Sequence[str], default: str) -> list[str]:
    """`--preset NAME` as the subcommand NAME, where tyro looks for it."""
    arguments = list(arguments)
    for at, argument in enumerate(arguments):
        if argument == "--preset" and at + 1 < len(arguments):
            return [arguments[at + 1], *arguments[:at], *arguments[at + 2 :]]
        if argument.startswith("--preset="):
            return [argument.split("=", 1)[1], *arguments[:at], *arguments[at + 1 :]]
    names_one = bool(arguments) and not arguments[0].startswith("-")
    return arguments if names_one else [default, *arguments]
