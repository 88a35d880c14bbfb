"""Local response and batch normalisation in LeNet-5 (Table 5.3).

python -m experiments.peck2017.normalisation --preset demo
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

import reference_models
from experiments import cli
from experiments.peck2017 import checks, claims, figures, published, study
from experiments.peck2017.comparison import BOUNDS, compare, summary, violations
from tfrobust import data, evaluate
from tfrobust.report import Run

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


def make(run: Run, settings: Settings, preset: str, data_dir: Path | None) -> Path:
    """All steps; the page's path."""
    train = data.load(settings.dataset, "train", data_dir)
    test = data.load(settings.dataset, "test", data_dir)
    chosen = {"fast_gradient_sign": {"max_epsilon": published.MAX_EPSILON}}
    frames, rows = {}, []
    for variant in settings.variants:
        parts = []
        for seed in settings.seeds:
            place = f"{variant}/seed{seed}"
            model = study.trained(
                run,
                place,
                lambda variant=variant: reference_models.build(
                    variant, input_shape=train.images.shape[1:], classes=train.classes
                ),
                train,
                iterations=settings.iterations,
                batch_size=settings.batch_size,
                seed=seed,
            )
            frame = run.frame_step(
                f"{place}/compared.parquet",
                lambda model=model: compare(
                    model, test.images[: settings.images], test.value_range, chosen
                ),
            )
            accuracy = run.json_step(
                f"{place}/accuracy.json", lambda model=model: evaluate(model, *test.arrays)
            )["accuracy"]
            rows.append(
                {
                    "network": variant,
                    "seed": seed,
                    "test accuracy": accuracy,
                    "published accuracy": published.figure("5.3", variant, "accuracy"),
                    "FGS median": frame["fast_gradient_sign"].median(),
                    **{f"{words}, median": frame[key].median() for key, words in BOUNDS.items()},
                    **{f"violations, {key}": violations(frame, key) for key in BOUNDS},
                }
            )
            parts.append(frame)
        frames[variant] = pd.concat(parts, ignore_index=True)
    folder = run.folder / "figures"
    judged = list(claims.bounds_hold(frames, "Theorems 5.6 and 5.9"))
    plain = frames.get("lenet5")
    for variant, frame in frames.items():
        if plain is not None and variant != "lenet5":
            for column, words in (
                ("fast_gradient_sign", "FGS distance"),
                ("printed", "printed bound"),
            ):
                judged.append(
                    claims.raises(
                        f"{variant} raises the {words}", plain, frame, column, "Table 5.3"
                    )
                )
    return study.finish(
        run,
        preset,
        title="normalisation in LeNet-5",
        lead=f"{len(frames)} variants on {settings.dataset}, {settings.iterations:,} Adam "
        f"iterations in batches of {settings.batch_size}, seeds "
        f"{', '.join(map(str, settings.seeds))}, {settings.images} test images.",
        tables={
            "Table 5.3": ("Medians over images. " + study.ABOUT, pd.DataFrame(rows)),
            "Quantities": ("Pixels in [0, 1].", summary(frames, "5.3")),
        },
        drawn={
            "Bounds against attacks": (
                "Each image's bounds against FGS's distance.",
                figures.scatter(dict(list(frames.items())[:4]), folder, "table5.3"),
            )
        },
        judged=judged,
    )


def check(settings: Settings, data_dir: Path | None) -> None:
    """Raises: InputError for settings that make no sense."""
    checks.distinct(settings, "variants", "seeds")
    checks.one_of(settings, VARIANTS, "variants")
    checks.one_of(settings, checks.IMAGES, "dataset")
    checks.at_least(settings, 1, "iterations", "images", "batch_size")
    checks.at_least(settings, 0, "seeds")


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the experiment from the command line."""
    return study.execute("normalisation", PRESETS, make, check, arguments)


if __name__ == "__main__":
    cli.run(main)
