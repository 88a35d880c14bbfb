"""LeNet-5 on MNIST and Network in Network on CIFAR-10 (Tables 5.1, 5.2, Figures 5.8 to 5.11).

python -m experiments.peck2017.cnns --preset demo
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

import reference_models
from experiments.common.checks import Count, Index, Positive, Seed
from experiments.common.experiment import Task, execute
from experiments.common.members import Member, Progress
from experiments.common.page import Drawing, Report, Table
from experiments.peck2017 import claims, figures, published, study
from experiments.peck2017.checks import Images, check_model_file
from experiments.peck2017.comparison import BOUNDS, fgs_and, summary
from tfrobust import attacks
from tfrobust.commands import run
from tfrobust.data import Dataset
from tfrobust.errors import InputError
from tfrobust.report import figures as plots

PICTURED, ITERATED = 8, 5
OF_BOUNDS = ["violations", "bound / attack"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Networks, training and attacks."""

    lenet_data: Images = "mnist"
    """Images for LeNet-5."""
    lenet_iterations: Count = published.ADAM_ITERATIONS
    """Adam iterations, rounded up to whole epochs."""
    lenet_weights: str | None = None
    """A trained .keras file instead."""
    lenet_images: Count = 1000
    """The first so many test images are bounded and attacked."""
    nin_data: Images | Literal["none"] = "cifar10"
    """Images for CIFAR-NIN; "none" leaves it out."""
    nin_iterations: Count = published.ADAM_ITERATIONS
    """As for LeNet-5."""
    nin_learning_rate: Positive = 2e-4
    """Of Adam: at 1e-3 the ReLU behind the last convolution dies."""
    nin_weights: str | None = None
    """A trained .keras file instead."""
    nin_images: Count = 300
    """As for LeNet-5."""
    nin_tighten: bool = False
    """Tighten CIFAR-NIN's certified bound too: about a minute per image on 2 cores."""
    batch_size: Count = 64
    """Of training."""
    carlini_wagner_steps: Index = 100
    """Of each search; 0 leaves the attack out."""
    seed: Seed = 0
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


@dataclasses.dataclass(frozen=True)
class Network:
    """What differs between the two networks."""

    title: str
    figures: tuple[str, str]
    """Numbers of the histograms and of the scatter plot."""
    data: str
    weights: str | None
    iterations: int
    learning_rate: float
    images: int
    tighten: bool
    carlini_wagner: dict[str, float]


def networks(settings: Settings) -> dict[str, Network]:
    """LeNet-5, and CIFAR-NIN unless its data are "none"; gentler searches for the larger one."""
    steps = settings.carlini_wagner_steps
    lenet = Network(
        "LeNet-5",
        ("5.8", "5.9"),
        **_settings_of("lenet", settings),
        learning_rate=1e-3,
        tighten=True,
        carlini_wagner={"steps": steps, "stepsize": 0.03, "binary_search_steps": 5},
    )
    nin = Network(
        "CIFAR-NIN",
        ("5.10", "5.11"),
        **_settings_of("nin", settings),
        learning_rate=settings.nin_learning_rate,
        tighten=settings.nin_tighten,
        carlini_wagner={"steps": steps // 4, "stepsize": 0.03, "binary_search_steps": 3},
    )
    both = {"lenet5": lenet, "cifar_nin": nin}
    return {name: network for name, network in both.items() if network.data != "none"}


def _settings_of(network: str, settings: Settings) -> dict[str, Any]:
    names = ("data", "weights", "iterations", "images")
    return {name: getattr(settings, f"{network}_{name}") for name in names}


def load(settings: Settings, preset: str, data_dir: Path | None) -> dict[str, study.Splits]:
    """Every network's test set, and what it is trained on if it is."""
    return {
        name: study.splits(network.data, data_dir, "train", "validation", weights=network.weights)
        for name, network in networks(settings).items()
    }


def members(settings: Settings) -> list[Member]:
    """LeNet-5 and CIFAR-NIN."""
    return [
        Member(network.title, name, {"network": name})
        for name, network in networks(settings).items()
    ]


def steps(task: Task, member: Member) -> Iterator[None]:
    """Train or load, bound and attack, perturb the first images."""
    name = member.folder
    network, sets = networks(task.settings)[name], task.data[name]
    test = sets["test"]
    model = study.trained(
        task,
        member,
        partial(
            reference_models.build,
            name,
            input_shape=test.images.shape[1:],
            classes=test.classes,
        ),
        sets.get("train"),
        weights=network.weights,
        iterations=network.iterations,
        batch_size=task.settings.batch_size,
        learning_rate=network.learning_rate,
        seed=task.settings.seed,
        validation=None if network.weights else sets["validation"].arrays,
    )
    yield
    x, within = test.images[: network.images], {"value_range": test.value_range}
    chosen = fgs_and("none", max_epsilon=published.MAX_EPSILON)
    if network.carlini_wagner["steps"]:
        chosen["carlini_wagner"] = network.carlini_wagner
    yield from study.bound_attack_and_test(
        task, member, model, x, test, chosen, tighten=network.tighten
    )

    def perturbed() -> dict[str, np.ndarray]:
        result = attacks.minimal(model, x[:PICTURED], "fast_gradient_sign", **within)
        return {"perturbation": result.perturbation}

    def iterated() -> dict[str, np.ndarray]:
        result = attacks.iterate(model, x[:ITERATED], steps=6, overshoot=1.0, **within)
        return dataclasses.asdict(result)

    task.run.arrays_step(f"{name}/perturbations.npz", perturbed)
    yield
    task.run.arrays_step(f"{name}/iterated.npz", iterated)
    yield


def report(task: Task, progress: Progress) -> Report:
    """Tables 5.1 and 5.2, Figures 5.8 to 5.11."""
    settings = task.settings
    results = study.read_results(task, progress)
    frames, rows, drawings = {}, [], []
    for result in results:
        name = result.settings["network"]
        network, test = networks(settings)[name], task.data[name]["test"]
        frames[network.title] = result.frame
        rows.append(
            {
                "network": network.title,
                "data": test.provenance.source,
                "test accuracy": result.accuracy,
                "published accuracy": published.figure("5.1", network.title, "accuracy"),
                "images": len(result.frame),
            }
        )
        drawings += _drawings(task, name, network, test, result.frame)
    distances = {
        name: frame[[c for c in frame if c in ("fast_gradient_sign", "carlini_wagner")]]
        for name, frame in frames.items()
    }
    lower = summary(frames, "5.2")
    return study.report_of(
        task,
        title="convolutional networks",
        lead=f"Adam, batches of {settings.batch_size}; FGS by Algorithm 2.1, epsilon up to 100/255 "
        "of the pixels' range, labels are the networks' own predictions.",
        tables=[
            Table("Networks", "", pd.DataFrame(rows)),
            Table(
                "Table 5.1",
                "Norms of perturbations found, pixels in [0, 1]. " + study.ABOUT,
                summary(distances, "5.1").drop(columns=OF_BOUNDS),
            ),
            Table(
                "Table 5.1 in 0..255",
                "The same for pixels in [0, 255], as in the thesis.",
                summary(distances, "5.1 in 0..255", scale=255).drop(columns=OF_BOUNDS),
            ),
            Table(
                "Table 5.2",
                "Lower bounds, pixels in [0, 1]. " + study.ABOUT,
                lower[lower["quantity"].isin(BOUNDS.values())],
            ),
        ],
        drawings=drawings,
        claims=claims.bounds_hold(frames, "Theorems 3.6, 4.2, 5.1, 5.3"),
    )


def _drawings(
    task: Task, name: str, network: Network, test: Dataset, frame: pd.DataFrame
) -> list[Drawing]:
    title = network.title
    first, second = network.figures
    changes = task.run.read_arrays(f"{name}/perturbations.npz")["perturbation"]
    # norm and names are arrays without dimensions
    arrays = task.run.read_arrays(f"{name}/iterated.npz")
    iterated = {key: v if v.ndim else v.item() for key, v in arrays.items()}
    return [
        *figures.histograms_of({title: frame}, f"Figure {first}", f"figure{first}"),
        *figures.scatter_of({title: frame}, f"Figure {second}", f"figure{second}"),
        Drawing(
            f"Perturbations, {title}",
            "The first test images, FGS's smallest perturbations, and both together.",
            f"perturbations-{name}",
            partial(figures.perturbations, test.images[: len(changes)], changes),
        ),
        Drawing(
            f"Iterated perturbations, {title}",
            "Eq. (2.7): FGS's smallest perturbation again and again, each step away from the class "
            "that the image has by then, twice as far as its boundary (overshoot 1).",
            f"iterated-{name}",
            partial(
                plots.iterated_perturbation,
                attacks.IteratedPerturbation(**iterated),
                task.run.folder / "figures" / f"iterated-{name}.png",
                value_range=test.value_range,
            ),
        ),
    ]


def check_settings(settings: Settings, data_dir: Path | None) -> None:
    """Raises: InputError for networks that do not fit."""
    check_model_file(settings, "lenet_weights", settings.lenet_data, data_dir)
    if settings.nin_data != "none":
        check_model_file(settings, "nin_weights", settings.nin_data, data_dir)
    elif settings.nin_weights is not None:
        raise InputError("--nin-weights needs --nin-data, which is none: CIFAR-NIN is left out")


EXPERIMENT = study.define(
    "cnns",
    PRESETS,
    load,
    members,
    steps,
    report,
    complete=(study.BOUNDED, study.TESTED, "perturbations.npz", "iterated.npz"),
    check_settings=check_settings,
    files=("lenet_weights", "nin_weights"),
)
main = partial(execute, EXPERIMENT)


if __name__ == "__main__":
    run(main)
