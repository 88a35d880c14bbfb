"""Interpretation Regularization on MNIST (Section 4.2, Table 1, Figures 1 and 4).

python -m experiments.noack2020.mnist --preset demo
"""

from __future__ import annotations

from functools import partial

from experiments.common.experiment import Experiment, Task, execute
from experiments.common.members import Progress
from experiments.common.page import Report
from experiments.noack2020 import page, study
from experiments.noack2020.published import TABLE1
from experiments.noack2020.table import (
    COMPLETE,
    TableSettings,
    check_settings,
    members,
    results,
    steps,
)
from tfrobust.commands import run

_ATTACKS = ("l2-1.5", "linf-0.1", "linf-0.2", "linf-0.25", "linf-0.3")

PRESETS = {
    "demo": TableSettings(
        **study.DIGITS,
        rows=("standard", "at-0.7", "jr", "ir-r-simp", "ir-r-smg"),
        attacks=("l2-1.5", "linf-0.1"),
        attack_steps=5,
        restarts=2,
        jacobians=200,
    ),
    "reduced": TableSettings(**study.REDUCED_MNIST, rows=tuple(TABLE1), attacks=_ATTACKS),
    "paper": TableSettings(
        **study.MNIST,
        rows=(*TABLE1, "at-linf-0.3", "ir-at-linf-0.3-simp", "ir-at-2.5-simp", "ir-random-simp"),
        attacks=_ATTACKS,
        at_seeds=3,
        smoothgrad="released",
        stop="last",
        jacobians=55_000,
    ),
}


def report(task: Task, progress: Progress) -> Report:
    """Table 1, Figures 1 and 4."""
    return page.report(
        task,
        results(task, progress),
        TABLE1 if task.settings.dataset == "mnist" else {},
        title=f"Noack 2020: Table 1, {task.settings.dataset}",
        table="Table 1",
    )


EXPERIMENT = Experiment(
    "noack2020-mnist",
    PRESETS,
    study.SCALES,
    study.load_splits,
    members,
    steps,
    COMPLETE,
    report,
    check_settings,
    distributed=False,
)
main = partial(execute, EXPERIMENT)


if __name__ == "__main__":
    run(main)
