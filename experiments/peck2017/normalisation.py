"""Local response and batch normalisation in LeNet-5 (Table 5.3).

python -m experiments.peck2017.normalisation --preset demo
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

import reference_models
from experiments.common import checks as common_checks
from experiments.common.experiment import Task, execute
from experiments.common.members import Member, Progress
from experiments.common.page import Drawing, Report, Table
from experiments.peck2017 import checks, claims, figures, published, study
from experiments.peck2017.comparison import BOUNDS, fgs_and, summary, violations
from tfrobust import data
from tfrobust.commands import run
from tfrobust.report import Claim

VARIANTS = ("lenet5", *(f"lenet5_{kind}{n}" for kind in ("lrn", "bn") for n in (1, 2, 3)))


@dataclasses.dataclass(frozen=True)
class Settings:
    """Variants, training and attacks."""

    variants: tuple[str, ...] = VARIANTS
    """Names of `reference_models`: normalisation after the first pool, the second, both."""
    dataset: str = "mnist"
    """Images."""
    iterations: int = published.ADAM_ITERATIONS
    """Adam iterations, rounded up to whole epochs."""
    images: int = 300
    """The first so many test images are bounded and attacked."""
    batch_size: int = 64
    """Of training."""
    seeds: tuple[int, ...] = (0,)
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


def load(settings: Settings, preset: str, data_dir: Path | None) -> dict[str, data.Dataset]:
    """Training and test set."""
    return {
        split: data.load(settings.dataset, split, data_dir=data_dir) for split in ("train", "test")
    }


def members(settings: Settings) -> list[Member]:
    """One network per variant and seed."""
    return [
        Member(
            f"{variant}, seed {seed}", f"{variant}/seed{seed}", {"variant": variant, "seed": seed}
        )
        for variant in settings.variants
        for seed in settings.seeds
    ]


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
    rows = [
        {
            "network": result.settings["variant"],
            "seed": result.settings["seed"],
            "test accuracy": result.accuracy,
            "published accuracy": published.figure("5.3", result.settings["variant"], "accuracy"),
            "FGS median": result.frame["fast_gradient_sign"].median(),
            **{f"{words}, median": result.frame[key].median() for key, words in BOUNDS.items()},
            **{f"violations, {key}": violations(result.frame, key) for key in BOUNDS},
        }
        for result in results
    ]
    scatter = Drawing(
        "Bounds against attacks",
        "Each image's bounds against FGS's distance.",
        "table5.3",
        partial(figures.scatter, dict(list(frames.items())[:4])),
    )
    return study.report_of(
        task,
        title="normalisation in LeNet-5",
        lead=f"{len(frames)} variants on {settings.dataset}, {settings.iterations:,} Adam "
        f"iterations in batches of {settings.batch_size}, seeds "
        f"{', '.join(map(str, settings.seeds))}, {settings.images} test images.",
        tables=[
            Table("Table 5.3", "Medians over images. " + study.ABOUT, pd.DataFrame(rows)),
            Table("Quantities", "Pixels in [0, 1].", summary(frames, "5.3")),
        ],
        drawings=[scatter] if frames else [],
        claims=[*claims.bounds_hold(frames, "Theorems 5.6 and 5.9"), *_are_raised(frames)],
    )


def _are_raised(frames: Mapping[str, pd.DataFrame]) -> list[Claim]:
    """Whether each variant's distances and printed bounds are larger than the plain network's."""
    plain = frames.get("lenet5")
    quantities = {"fast_gradient_sign": "FGS distance", "printed": "printed bound"}
    return [
        claims.is_larger(f"{variant} raises the {words}", plain, frame, column, "Table 5.3")
        for variant, frame in frames.items()
        for column, words in quantities.items()
        if plain is not None and variant != "lenet5"
    ]


def check_settings(settings: Settings, data_dir: Path | None) -> None:
    """Raises: InputError for settings that make no sense."""
    common_checks.distinct(settings, "variants", "seeds")
    common_checks.one_of(settings, VARIANTS, "variants")
    common_checks.one_of(settings, checks.IMAGES, "dataset")
    common_checks.at_least(settings, 1, "iterations", "images", "batch_size")
    common_checks.at_least(settings, 0, "seeds")


EXPERIMENT = study.define(
    "normalisation",
    PRESETS,
    check_settings=check_settings,
    members=members,
    steps=steps,
    report=report,
    load=load,
)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the experiment from the command line; the page's path."""
    return execute(EXPERIMENT, arguments)


if __name__ == "__main__":
    run(main)
