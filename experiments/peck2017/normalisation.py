"""Local response and batch normalisation in LeNet-5 (Table 5.3).

python -m experiments.peck2017.normalisation --preset demo
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Literal

import reference_models
from experiments.common.checks import DISTINCT, Count, Seed
from experiments.common.experiment import Task, execute
from experiments.common.members import Member, Progress, grid
from experiments.common.page import Report, Table
from experiments.peck2017 import claims, figures, published, study
from experiments.peck2017.checks import Images
from experiments.peck2017.comparison import fgs_and, summary
from tfrobust.commands import run

VARIANTS = ("lenet5", *(f"lenet5_{kind}{n}" for kind in ("lrn", "bn") for n in (1, 2, 3)))


@dataclasses.dataclass(frozen=True)
class Settings:
    """Variants, training and attacks."""

    variants: Annotated[tuple[Literal[*VARIANTS], ...], DISTINCT] = VARIANTS
    """Names of `reference_models`: normalisation after the first pool, the second, both."""
    dataset: Images = "mnist"
    """Images."""
    iterations: Count = published.ADAM_ITERATIONS
    """Adam iterations, rounded up to whole epochs."""
    images: Count = 300
    """The first so many test images are bounded and attacked."""
    batch_size: Count = 64
    """Of training."""
    seeds: Annotated[tuple[Seed, ...], DISTINCT] = (0,)
    """Networks of each variant."""


PRESETS = {
    "demo": Settings(
        variants=("lenet5", "lenet5_lrn1", "lenet5_bn1"),
        dataset="digits",
        iterations=100,
        images=30,
    ),
    "reduced": Settings(iterations=1500),
    "paper": Settings(images=10_000, seeds=(0, 1, 2, 3, 4)),
}


def steps(task: Task, member: Member) -> Iterator[None]:
    """Train, bound, attack."""
    settings, train, test = task.settings, task.data["train"], task.data["test"]
    model = study.trained(
        task,
        member,
        partial(
            reference_models.build,
            member.settings["variant"],
            input_shape=train.images.shape[1:],
            classes=train.classes,
        ),
        train,
        iterations=settings.iterations,
        batch_size=settings.batch_size,
        seed=member.settings["seed"],
    )
    yield
    x, attacks = test.images[: settings.images], fgs_and("none", max_epsilon=published.MAX_EPSILON)
    yield from study.bound_attack_and_test(task, member, model, x, test, attacks)


def report(task: Task, progress: Progress) -> Report:
    """Table 5.3."""
    settings = task.settings
    results = study.read_results(task, progress)
    frames = study.concatenated(results, lambda result: result.settings["variant"])
    plain = frames.get("lenet5")
    quantities = {"fast_gradient_sign": "FGS distance", "printed": "printed bound"}
    networks = study.table_of_networks(results)
    networks.frame["published accuracy"] = [
        published.figure("5.3", result.settings["variant"], "accuracy") for result in results
    ]
    return study.report_of(
        task,
        title="normalisation in LeNet-5",
        lead=f"{len(frames)} variants on {settings.dataset}, {settings.iterations:,} Adam "
        f"iterations in batches of {settings.batch_size}, seeds "
        f"{', '.join(map(str, settings.seeds))}, {settings.images} test images.",
        tables=[
            networks,
            Table("Table 5.3", "Pixels in [0, 1]. " + study.ABOUT, summary(frames, "5.3")),
        ],
        drawings=figures.scatter_of(frames, "Bounds against attacks", "table5.3"),
        claims=[
            *claims.bounds_hold(frames, "Theorems 5.6 and 5.9"),
            *(
                claims.is_larger(f"{name} raises the {quantity}", plain, frame, column, "Table 5.3")
                for name, frame in frames.items()
                for column, quantity in quantities.items()
                if plain is not None and name != "lenet5"
            ),
        ],
    )


members = partial(
    grid, "{variant}, seed {seed}", "{variant}/seed{seed}", variant="variants", seed="seeds"
)
EXPERIMENT = study.define("normalisation", PRESETS, study.load_splits, members, steps, report)
main = partial(execute, EXPERIMENT)


if __name__ == "__main__":
    run(main)
