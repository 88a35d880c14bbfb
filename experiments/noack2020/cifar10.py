"""Interpretation Regularization on CIFAR-10 (Section 4.3, Table 2, Figures 1 and 4).

python -m experiments.noack2020.cifar10 --preset demo

Table 2 has two groups, by the radius of the robust network that supplies the maps; each has weights
of its own. The standard network and those of adversarial training belong to both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

from experiments.common.checks import DISTINCT, NotNegative
from experiments.common.experiment import Experiment, Task, execute
from experiments.common.members import Member, Progress
from experiments.common.page import Drawing, Report, Table
from experiments.noack2020 import page, study, table
from experiments.noack2020.published import TABLE2
from experiments.noack2020.rows import Row
from tfrobust.commands import run
from tfrobust.errors import InputError

# of each group: radius of the robust network, lambda_m, lambda_J. The text names the weights, the
# released code .005 with 80/255; the others are inferred
_GROUPS = (("320/255", 0.02, 0.1), ("80/255", 0.005, 0.03))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(table.TableSettings):
    """Rows, in every group whose maps they need."""

    groups: tuple[tuple[str, NotNegative, NotNegative], ...] = _GROUPS
    """Radius of the robust network, lambda_m and lambda_J."""
    all_groups: Annotated[tuple[str, ...], DISTINCT] = ("jr", "ir-r-simp", "ir-r-smg")
    """Rows that every group has; the others only the last."""


_ROWS = ("standard", "at-320/255", "at-80/255", *TABLE2["80/255"])
_ATTACKS = ("l2-80/255", "l2-320/255", "linf-4/255", "linf-8/255")
PRESETS = {
    "demo": Settings(
        **{**study.DIGITS, "robust": "at-80/255", "epochs": 3},
        rows=("at-80/255", "jr", "ir-r-smg"),
        groups=(("80/255", 0.005, 0.03),),
        attacks=("l2-80/255", "linf-8/255"),
        attack_steps=5,
        restarts=2,
        jacobians=200,
    ),
    "reduced": Settings(
        **{**study.CIFAR10, "depth": 10, "widen": 1, "epochs": 10, "train_examples": 5000},
        test_examples=500,
        robust="at-80/255",
        rows=("standard", "at-80/255", "jr", "ir-nr-smg", "ir-r-simp", "ir-r-smg"),
        groups=(("80/255", 0.005, 0.03),),
        attacks=_ATTACKS,
        samples=20,
        floors=("code",),
        jacobians=500,
    ),
    "paper": Settings(
        **study.CIFAR10,
        robust="at-80/255",
        rows=tuple(dict.fromkeys(_ROWS)),
        attacks=_ATTACKS,
        jr_divisor=8,
        smoothgrad="released",
        threshold_after=True,
        stop="last",
        jacobians=50_000,
    ),
}


def check_settings(settings: Settings, data_dir: Path | None) -> None:
    """Every group's robust network is among the rows."""
    for radius, *_ in settings.groups:
        if f"at-{radius}" not in settings.rows:
            raise InputError(f"--rows lacks at-{radius}, the robust network of a group")
    table.check_settings(_in_group(settings, settings.groups[-1]), data_dir)


def _in_group(settings: Settings, group: tuple[str, float, float]) -> Settings:
    """The settings with a group's robust network and weights."""
    radius, magnitude, jacobian = group
    return dataclasses.replace(
        settings, robust=f"at-{radius}", lambda_m=magnitude, lambda_j=jacobian
    )


def members(settings: Settings) -> list[Member]:
    """Standard and adversarial training, then each group's rows."""
    last = settings.groups[-1]
    every = table.members(_in_group(settings, last))
    found = [_placed(member, last, "") for member in every if _is_shared(member)]
    for group in settings.groups:
        rows = settings.rows if group == last else settings.all_groups
        found += [
            _placed(member, group, f"group-{study.folder_of(group[0])}/")
            for member in every
            if member.settings["row"] in rows and not _is_shared(member)
        ]
    return found


def _is_shared(member: Member) -> bool:
    return Row.of(member.settings["row"]).kind in ("standard", "at")


def _placed(member: Member, group: tuple[str, float, float], prefix: str) -> Member:
    name = f"{member.name}, group {group[0]}" if prefix else member.name
    place = {**member.settings, "group": group, "shared": not prefix}
    return Member(name, f"{prefix}{member.folder}", place)


def steps(task: Task, member: Member) -> Iterator[None]:
    """Train; test; measure; attack, with the group's weights."""
    settings = _in_group(task.settings, member.settings["group"])
    yield from table.steps(dataclasses.replace(task, settings=settings), member)


def report(task: Task, progress: Progress) -> Report:
    """Table 2 by its groups, Figures 1 and 4."""
    tables: list[Table] = []
    drawings: list[Drawing] = []
    claims = []
    for number, group in enumerate(task.settings.groups):
        inside = tuple(
            member
            for member in progress.finished
            if member.settings["shared"] or member.settings["group"] == group
        )
        inside = tuple(m for m in inside if not _other_robust(m, group))
        part = page.report(
            dataclasses.replace(task, settings=_in_group(task.settings, group)),
            table.results(task, dataclasses.replace(progress, finished=inside)),
            _published(task.settings, group[0]),
            title="",
            table=f"Table 2, group {group[0]}",
        )
        suffix = f"_group{number + 1}"
        tables += [
            dataclasses.replace(
                each,
                title=each.title if "group" in each.title else f"{each.title}, group {group[0]}",
                file=f"{each.title.split(',')[0].lower().replace(' ', '_')}{suffix}",
            )
            for each in part.tables
        ]
        drawings += [
            dataclasses.replace(
                each, title=f"{each.title}, group {group[0]}", file=f"{each.file}{suffix}"
            )
            for each in part.drawings
        ]
        claims += [
            dataclasses.replace(claim, statement=f"{claim.statement} (group {group[0]})")
            for claim in part.claims
        ]
    return Report(
        title=f"Noack 2020: Table 2, {task.settings.dataset}",
        lead=f"{study.SCALES[task.preset]} {study.ABOUT}",
        tables=tables,
        drawings=drawings,
        claims=claims,
    )


def _published(settings: Settings, radius: str) -> dict[str, dict[str, float]]:
    """Cells of a group; none for another data set."""
    if settings.dataset != "cifar10":
        return {}
    return {**TABLE2[""], **TABLE2.get(radius, {})}


def _other_robust(member: Member, group: tuple[str, float, float]) -> bool:
    """Whether a network of adversarial training is another group's."""
    row = Row.of(member.settings["row"])
    return row.kind == "at" and row.name != f"at-{group[0]}"


EXPERIMENT = Experiment(
    "noack2020-cifar10",
    PRESETS,
    study.SCALES,
    study.load_splits,
    members,
    steps,
    table.COMPLETE,
    report,
    check_settings,
    distributed=False,
)
main = partial(execute, EXPERIMENT)


if __name__ == "__main__":
    run(main)
