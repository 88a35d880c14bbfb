"""From a command to a page: the members of a cohort, here, on several devices, or on a cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common import checks
from experiments.common.command_line import Command, parse
from experiments.common.members import FAILURE, Member, Progress, progress_of
from experiments.common.page import Report, write_page
from experiments.common.train import say
from tfrobust import distribution
from tfrobust.commands import show
from tfrobust.distribution import is_chief
from tfrobust.errors import InputError
from tfrobust.report import Run
from tfrobust.training import NonFiniteLossError

__all__ = ["Experiment", "Task", "execute"]

# seconds to wait for a scheduler and its first worker
TIMEOUT = 60.0
# seconds between figures of a cohort that is not finished: they take some to draw
FIGURES_EVERY = 300.0


@dataclasses.dataclass(frozen=True)
class Task:
    """What the steps and the page of an experiment work with."""

    run: Run
    settings: Any
    preset: str
    data: Any
    """What the experiment's `load` returned."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment on a cohort; its functions are importable, so that workers find them."""

    name: str
    presets: Mapping[str, Any]
    """Settings dataclasses by name, all of one class; the first is the default."""
    about: Mapping[str, str]
    """One sentence per preset: what it is beside the paper's."""
    load: Callable[[Any, str, Path | None], Any]
    """(settings, preset, data folder): data that all members share; builds no model."""
    members: Callable[[Any], Sequence[Member]]
    """(settings)"""
    steps: Callable[[Task, Member], Iterator[None]]
    """Goes through the steps of a member, leaves each as a file, and yields after each."""
    complete: Sequence[str]
    """Files of a member that are all there once it is finished."""
    report: Callable[[Task, Progress], Report]
    """What the page shows, with whatever is there."""
    check_settings: Callable[[Any, Path | None], None] = lambda settings, data_dir: None
    """(settings, data folder): raises InputError for what their types do not tell."""
    files: Sequence[str] = ()
    """Settings that name a file, or None, whose contents the results depend on."""
    distributed: bool = True
    """Whether it takes --strategy and --scheduler."""


@dataclasses.dataclass(frozen=True)
class _Job:
    """What a worker needs to make a member by itself."""

    experiment: Experiment
    settings: Any
    preset: str
    data_dir: Path | None
    folder: Path

    def run(self) -> Run:
        named = {name: getattr(self.settings, name) for name in self.experiment.files}
        files = {name: path for name, path in named.items() if path is not None}
        return Run(self.folder, self.settings, files=files)

    def task(self, run: Run, data: Any) -> Task:
        return Task(run, self.settings, self.preset, data)


def execute(experiment: Experiment, arguments: Sequence[str] | None = None) -> Path:
    """Take every member through its steps, write the page and show it; the page's path.

    Steps that are finished are left as they are. A member whose loss is not finite is noted as
    failed, and the others go on; the next run tries it again.

    Args:
        experiment: what is run.
        arguments: the command line; sys.argv where None.

    Raises:
        SystemExit: a malformed command line (status 2).
        TfrobustError, OSError: settings that make no sense, data that are not there (before
            anything is written), a run folder of other settings, and so on.
    """
    command = parse(experiment.presets, experiment.name, arguments, about=experiment.about)
    _check(experiment, command)
    job = _Job(
        experiment, command.settings, command.preset, command.data_dir, command.out.resolve()
    )
    members = list(experiment.members(command.settings))
    with contextlib.ExitStack() as stack:
        if command.scheduler:
            data = experiment.load(job.settings, job.preset, job.data_dir)
            task = job.task(stack.enter_context(contextlib.closing(job.run())), data)
            task.run.share()
            one = functools.partial(_make_on_worker, job, members)
            distribution.map_cohort(one, members, scheduler=command.scheduler, timeout=TIMEOUT)
            chief = True
        else:
            with distribution.strategy(command.strategy).scope():
                data = experiment.load(job.settings, job.preset, job.data_dir)
                task = job.task(stack.enter_context(contextlib.closing(job.run())), data)
                one = functools.partial(_make, experiment, task, members)
                distribution.map_cohort(one, members)
                chief = is_chief()
        if chief:
            _write_page(experiment, task, members, redraw=True)
    page = job.folder / "report.html"
    if chief:
        show(page, open_it=command.open)
    return page


def _check(experiment: Experiment, command: Command) -> None:
    if not experiment.distributed and (
        command.scheduler or command.strategy not in ("auto", "one")
    ):
        raise InputError(
            "this experiment is small and runs on one device: leave out --strategy and --scheduler"
        )
    checks.check(command.settings)
    experiment.check_settings(command.settings, command.data_dir)


def _make(experiment: Experiment, task: Task, members: Sequence[Member], member: Member) -> None:
    """Take one member through its steps; the page is written after each that was not finished."""
    run = task.run
    place = run.folder / member.folder
    if is_chief():
        (place / FAILURE).unlink(missing_ok=True)
    before = started = _files(place)
    try:
        for _ in experiment.steps(task, member):
            if is_chief() and _files(place) != before:
                before = _files(place)
                _write_page(experiment, task, members, redraw=False)
    except NonFiniteLossError as error:
        record = {
            "member": member.name,
            "settings": dict(member.settings),
            "error": type(error).__name__,
            "message": str(error),
        }
        run.write_json(f"{member.folder}/{FAILURE}", record)
        say(f"{member.name} failed, the others go on: {error}")
    # the last member's page is the whole cohort's, which is still to be written
    if is_chief() and _files(place) != started and member != members[-1]:
        _write_page(experiment, task, members, redraw=_figures_are_old(run.folder))


def _make_on_worker(job: _Job, members: Sequence[Member], member: Member) -> None:
    """The same in the member's process on a worker of a cluster."""
    data = job.experiment.load(job.settings, job.preset, job.data_dir)
    with contextlib.closing(job.run()) as run:
        _make(job.experiment, job.task(run, data), members, member)


def _write_page(
    experiment: Experiment, task: Task, members: Sequence[Member], *, redraw: bool
) -> None:
    progress = progress_of(task.run.folder, members, experiment.complete)
    content = experiment.report(task, progress)
    write_page(task.run, task.preset, content, progress, redraw=redraw)


def _figures_are_old(folder: Path) -> bool:
    drawn = folder / "figures"
    since = drawn if drawn.exists() else folder / "run.json"
    return time.time() - since.stat().st_mtime > FIGURES_EVERY


def _files(place: Path) -> set[str]:
    return {path.name for path in place.iterdir()} if place.is_dir() else set()
