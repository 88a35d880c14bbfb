"""The command line of every experiment: a preset, then overrides of single settings by tyro."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from tfrobust.commands import run, show

__all__ = ["Command", "parse", "run", "show"]


@dataclasses.dataclass(frozen=True)
class Command:
    """What the user asked for."""

    preset: str
    settings: Any
    out: Path
    data_dir: Path | None
    open: bool
    strategy: str
    scheduler: str | None


def parse(presets: Mapping[str, Any], name: str, arguments: Sequence[str] | None = None) -> Command:
    """Read where and how to run (`--preset`, `--out`, ...) and overrides of the preset's settings.

    Args:
        presets: settings dataclasses by name, all of one class; the first is the default.
        name: of the experiment; the default folder is runs/<name>-<preset>.
        arguments: the command line; sys.argv where None.

    Raises:
        SystemExit: unknown preset or setting, or malformed value, with a message (status 2).
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    default = next(iter(presets))
    parser = argparse.ArgumentParser(prog=name, add_help=False)
    parser.add_argument("--preset", default=default)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--open", action="store_true")
    parser.add_argument("--strategy", default="auto", choices=_STRATEGIES)
    parser.add_argument("--scheduler")
    known, rest = parser.parse_known_args(arguments)
    if known.scheduler and known.strategy not in ("auto", "one"):
        parser.error("--scheduler gives each classifier to one worker: leave --strategy out")
    if known.preset not in presets:
        parser.error(f"unknown preset {known.preset!r}; there are {', '.join(presets)}")
    if {"-h", "--help"} & set(rest):
        print(
            f"--preset {{{','.join(presets)}}} (default {default}); --out FOLDER for results "
            f"(default runs/{name}-PRESET); --data-dir FOLDER of prepared data sets; --open the "
            f"page at the end; --strategy {{{','.join(_STRATEGIES)}}} for one device, all GPUs or "
            "several hosts; --scheduler tcp://HOST:8786 trains the classifiers on the workers of a "
            "Dask scheduler. Below, the settings of the preset and how to override them.\n"
        )
    settings = tyro.cli(
        type(presets[known.preset]), prog=name, default=presets[known.preset], args=rest
    )
    return Command(
        preset=known.preset,
        settings=settings,
        out=known.out or Path("runs") / f"{name}-{known.preset}",
        data_dir=known.data_dir,
        open=known.open,
        strategy=known.strategy,
        scheduler=known.scheduler,
    )


_STRATEGIES = ("auto", "one", "mirrored", "multi_worker")
