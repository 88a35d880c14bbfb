"""From a command to a page: the members of a cohort, here, on several devices, or on a cluster."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import cli
from experiments.etmann2019.cohort import Study, begin, make, read
from experiments.etmann2019.page import write_page
from tfrobust import distribution
from tfrobust.distribution import is_chief
from tfrobust.errors import InputError
from tfrobust.report import Run

# seconds to wait for a scheduler and its first worker
TIMEOUT = 60.0
StudyOf = Callable[[Any, str, Path | None], Study]


def run_cohort(study: StudyOf, command: cli.Command, *, saturates: bool) -> None:
    """Train, measure and attack every member that is not finished, then write the page.

    Args:
        study: what all members share, from settings, preset and data folder.
        command: what the user asked for.
        saturates: whether the paper claims that alignment saturates on these data.
    """
    settings = command.settings
    if command.scheduler:
        run = Run(command.out.resolve(), settings)
        begin(run, _prepared(study, command))
        one = functools.partial(
            make_one, study, settings, command.preset, command.data_dir, run.folder
        )
        distribution.map_cohort(one, settings.lambdas, scheduler=command.scheduler, timeout=TIMEOUT)
        chief = True
    else:
        with distribution.strategy(command.strategy).scope():
            run = Run(command.out, settings)
            shared = _prepared(study, command)
            begin(run, shared)
            one = functools.partial(make, run, shared)
            distribution.map_cohort(one, settings.lambdas)
            chief = is_chief()
    if chief:
        cohort = read(run.folder)
        page = write_page(run, command.preset, cohort, saturates=saturates)
        cli.show(page, open_it=command.open)


def _prepared(study: StudyOf, command: cli.Command) -> Study:
    try:
        return study(command.settings, command.preset, command.data_dir)
    except ValueError as error:  # what is wrong with data, model or settings
        raise InputError(str(error)) from error


def make_one(
    study: StudyOf,
    settings: Any,
    preset: str,
    data_dir: Path | None,
    folder: Path,
    weight: float,
) -> None:
    """One member's files, made by a worker of a cluster; data are read once a worker."""
    make(Run(folder, settings), study(settings, preset, data_dir), weight)
