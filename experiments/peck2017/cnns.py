"""LeNet-5 on MNIST and Network in Network on CIFAR-10 (Tables 5.1, 5.2, Figures 5.8 to 5.11).

python -m experiments.peck2017.cnns --preset demo
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import pandas as pd

import reference_models
from experiments import cli
from experiments.peck2017 import checks, claims, figures, published, study
from experiments.peck2017.comparison import compare, summary
from tfrobust import attacks, data, evaluate
from tfrobust import figures as plots
from tfrobust.errors import InputError
from tfrobust.report import Run

PICTURED = 8


@dataclasses.dataclass(frozen=True)
class Settings:
    """Networks, training and attacks."""

    lenet_data: str = "mnist"
    """Images for LeNet-5."""
    lenet_iterations: int = published.ADAM_ITERATIONS
    """Adam iterations, rounded up to whole epochs."""
    lenet_weights: str | None = None
    """A trained .keras file instead."""
    lenet_images: int = 1000
    """The first so many test images are bounded and attacked."""
    nin_data: str = "cifar10"
    """Images for CIFAR-NIN; "none" leaves it out."""
    nin_iterations: int = published.ADAM_ITERATIONS
    """As for LeNet-5."""
    nin_learning_rate: float = 2e-4
    """Of Adam: at 1e-3 the ReLU behind the last convolution dies."""
    nin_weights: str | None = None
    """A trained .keras file instead."""
    nin_images: int = 300
    """As for LeNet-5."""
    nin_tighten: bool = False
    """Tighten CIFAR-NIN's certified bound too: about a minute an image on 2 cores."""
    batch_size: int = 64
    """Of training."""
    carlini_wagner_steps: int = 100
    """Of each search; 0 leaves the attack out."""
    seed: int = 0
    """Of weights, dropout and the order of examples."""


PRESETS = {
    "demo": Settings(
        lenet_data="digits",
        lenet_iterations=150,
        lenet_images=50,
        nin_data="none",
        carlini_wagner_steps=10,
    ),
    "reduced": Settings(nin_iterations=4900, nin_images=200),
    "paper": Settings(
        lenet_images=10_000, nin_images=10_000, nin_iterations=100_000, carlini_wagner_steps=1000
    ),
}


def make(run: Run, settings: Settings, preset: str, data_dir: Path | None) -> Path:
    """All steps; the page's path."""
    frames, rows, drawn = {}, [], {}
    folder = run.folder / "figures"
    for name, dataset, number in (
        ("lenet5", settings.lenet_data, "5.8"),
        ("cifar_nin", settings.nin_data, "5.10"),
    ):
        if dataset == "none":
            continue
        test = data.load(dataset, "test", data_dir)
        model = network(run, name, settings, data_dir)
        lenet = name == "lenet5"
        images = test.images[: settings.lenet_images if lenet else settings.nin_images]
        # gentler searches for the larger network
        steps = settings.carlini_wagner_steps if lenet else settings.carlini_wagner_steps // 4
        chosen = {"fast_gradient_sign": {"max_epsilon": published.MAX_EPSILON}}
        if steps:
            chosen["carlini_wagner"] = {
                "steps": steps,
                "stepsize": 0.03,
                "binary_search_steps": 5 if lenet else 3,
            }
        words = "LeNet-5" if lenet else "CIFAR-NIN"
        frames[words] = frame = run.frame_step(
            f"{name}/compared.parquet",
            lambda model=model, images=images, test=test, chosen=chosen, lenet=lenet: compare(
                model,
                images,
                test.value_range,
                chosen,
                tighten=lenet or settings.nin_tighten,
                batch_size=100,
            ),
        )
        accuracy = run.json_step(
            f"{name}/accuracy.json", lambda model=model, test=test: evaluate(model, *test.arrays)
        )["accuracy"]
        rows.append(
            {
                "network": words,
                "data": test.provenance.source,
                "test accuracy": accuracy,
                "published accuracy": published.figure("5.1", words, "accuracy"),
                "images": len(images),
            }
        )
        following = f"{float(number) + 0.1:.1f}" if lenet else "5.11"
        drawn[f"Figure {number}"] = (
            f"{words}: perturbations found and lower bounds, pixels in [0, 1].",
            figures.histograms(frame, folder, f"figure{number}", words),
        )
        drawn[f"Figure {following}"] = (
            f"{words}: each image's bounds against the smallest distance found.",
            figures.scatter({words: frame}, folder, f"figure{following}"),
        )
        drawn[f"Perturbations, {words}"] = (
            "The first test images, FGS's smallest perturbations, and both together.",
            pictures(run, name, model, images, test.value_range, folder),
        )
        drawn[f"Iterated perturbations, {words}"] = (
            "Eq. (2.7): FGS's smallest perturbation again and again, each step away from the class "
            "that the image has by then, twice as far as its boundary (overshoot 1).",
            iterated(model, images[:5], test.value_range, folder / f"iterated-{name}.png"),
        )
    attacked = {
        name: frame[[c for c in frame if c in ("fast_gradient_sign", "carlini_wagner")]]
        for name, frame in frames.items()
    }
    lower = summary(frames, "5.2")
    lower = lower[lower["quantity"].str.contains("bound")]
    return study.finish(
        run,
        preset,
        title="convolutional networks",
        lead=f"Adam, batches of {settings.batch_size}; FGS by Algorithm 2.1, epsilon up to 100/255 "
        "of the pixels' range, labels are the networks' own predictions.",
        tables={
            "Networks": ("", pd.DataFrame(rows)),
            "Table 5.1": (
                "Norms of perturbations found, pixels in [0, 1]. " + study.ABOUT,
                _plain(summary(attacked, "5.1")),
            ),
            "Table 5.1 in 0..255": (
                "The same for pixels in [0, 255], as in the thesis.",
                _plain(summary(attacked, "5.1 in 0..255", scale=255)),
            ),
            "Table 5.2": ("Lower bounds, pixels in [0, 1]. " + study.ABOUT, lower),
        },
        drawn=drawn,
        judged=claims.bounds_hold(frames, "Theorems 3.6, 4.2, 5.1, 5.3"),
    )


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns=["violations", "bound / attack"])


def network(run: Run, name: str, settings: Settings, data_dir: Path | None) -> keras.Model:
    """A trained network, from a file where one is given."""
    lenet = name == "lenet5"
    given = settings.lenet_weights if lenet else settings.nin_weights
    if given is not None:
        return reference_models.load(given)
    dataset = settings.lenet_data if lenet else settings.nin_data
    train = data.load(dataset, "train", data_dir)
    return study.trained(
        run,
        name,
        lambda: reference_models.build(
            name, input_shape=train.images.shape[1:], classes=train.classes
        ),
        train,
        iterations=settings.lenet_iterations if lenet else settings.nin_iterations,
        batch_size=settings.batch_size,
        learning_rate=1e-3 if lenet else settings.nin_learning_rate,
        seed=settings.seed,
        validation=data.load(dataset, "validation", data_dir),
    )


def pictures(
    run: Run,
    name: str,
    model: keras.Model,
    images: np.ndarray,
    value_range: tuple[float, float],
    folder: Path,
) -> Path:
    """Example images with their smallest FGS perturbations."""
    shown = images[:PICTURED]

    def perturbed() -> dict[str, np.ndarray]:
        found = attacks.minimal(model, shown, "fast_gradient_sign", value_range=value_range)
        return {"perturbation": found.perturbation}

    changes = run.arrays_step(f"{name}/perturbations.npz", perturbed)["perturbation"]
    return figures.perturbations(shown, changes, folder, f"perturbations-{name}")


def iterated(
    model: keras.Model, images: np.ndarray, value_range: tuple[float, float], path: Path
) -> Path:
    """The picture of eq. (2.7)."""
    if not path.exists():
        found = attacks.iterate(model, images, steps=6, overshoot=1.0, value_range=value_range)
        return plots.iterated_perturbation(found, path, value_range=value_range)
    return path


def check(settings: Settings, data_dir: Path | None) -> None:
    """Raises: InputError for settings that make no sense."""
    checks.one_of(settings, checks.IMAGES, "lenet_data")
    checks.one_of(settings, ("none", *checks.IMAGES), "nin_data")
    checks.at_least(settings, 1, "lenet_iterations", "nin_iterations", "batch_size")
    checks.at_least(settings, 1, "lenet_images", "nin_images")
    checks.at_least(settings, 0, "carlini_wagner_steps", "seed")
    checks.positive(settings, "nin_learning_rate")
    checks.fits(settings, "lenet_weights", settings.lenet_data, data_dir)
    if settings.nin_data != "none":
        checks.fits(settings, "nin_weights", settings.nin_data, data_dir)
    elif settings.nin_weights is not None:
        raise InputError("--nin-weights needs --nin-data, which is none: CIFAR-NIN is left out")


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the experiment from the command line."""
    return study.execute(
        "cnns", PRESETS, make, check, arguments, files=("lenet_weights", "nin_weights")
    )


if __name__ == "__main__":
    cli.run(main)
