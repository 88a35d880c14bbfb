"""The two networks of chapter 5: settings, data and members of `cnns`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from experiments.common.checks import Count, Index, Positive, Seed
from experiments.common.members import Member
from experiments.peck2017 import study
from experiments.peck2017.checks import Images, check_model_file
from tfrobust.errors import InputError

__all__ = ["PRESETS", "Network", "Settings", "check_settings", "load", "members", "networks"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Networks, training and attacks."""

    lenet_data: Images = "mnist"
    """Images for LeNet-5."""
    lenet_iterations: Count = study.ADAM_ITERATIONS
    """Adam iterations, rounded up to whole epochs: stated for the networks of Table 5.3 only."""
    lenet_pixels: Literal[255, 1] = 255
    """Pixels in [0, 255], as in the thesis, or in [0, 1]."""
    lenet_weights: str | None = None
    """A trained .keras file instead."""
    lenet_images: Count = 1000
    """The first so many test images are bounded and attacked."""
    nin_data: Images | Literal["none"] = "cifar10"
    """Images for CIFAR-NIN; "none" leaves it out."""
    nin_iterations: Count = 100_000
    """Adam iterations, rounded up to whole epochs."""
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
    """Of each search of an attack that the thesis does not have; 0 leaves it out."""
    lbfgs_images: Index = 20
    """The first so many images are attacked with L-BFGS too, the thesis's future work (6.1)."""
    seed: Seed = 0
    """Of weights, dropout and the order of examples."""


PRESETS = {
    "demo": Settings(
        lenet_data="digits",
        lenet_iterations=150,
        lenet_images=50,
        nin_data="none",
        carlini_wagner_steps=10,
        lbfgs_images=4,
    ),
    "reduced": Settings(nin_iterations=4900, nin_images=200),
    "paper": Settings(lenet_images=10_000, nin_images=10_000, carlini_wagner_steps=0),
}


@dataclasses.dataclass(frozen=True)
class Network:
    """What differs between the two networks."""

    title: str
    gallery: str
    """Number of the figure with its adversarial examples."""
    data: str
    pixels: float
    """Largest pixel."""
    weights: str | None
    iterations: int
    learning_rate: float
    images: int
    tighten: bool
    carlini_wagner: dict[str, float]

    @property
    def is_the_thesis_data(self) -> bool:
        """Whether its images are those of the thesis, so that its figures can be compared."""
        return self.data == ("mnist" if self.title == "LeNet-5" else "cifar10")

    @property
    def scale(self) -> float:
        """Of lengths, to units of pixels in [0, 255]."""
        return 255 / self.pixels


def networks(settings: Settings) -> dict[str, Network]:
    """LeNet-5, and CIFAR-NIN unless its data are "none"; gentler searches for the larger one."""
    steps = settings.carlini_wagner_steps
    lenet = Network(
        "LeNet-5",
        "5.8",
        **_settings_of("lenet", settings),
        pixels=float(settings.lenet_pixels),
        learning_rate=1e-3,
        tighten=True,
        carlini_wagner={"steps": steps, "stepsize": 0.03, "binary_search_steps": 5},
    )
    nin = Network(
        "CIFAR-NIN",
        "5.9",
        **_settings_of("nin", settings),
        pixels=1.0,
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
        name: study.splits(
            network.data,
            data_dir,
            "train",
            "validation",
            weights=network.weights,
            pixels=network.pixels,
        )
        for name, network in networks(settings).items()
    }


def members(settings: Settings) -> list[Member]:
    """LeNet-5 and CIFAR-NIN."""
    return [
        Member(network.title, name, {"network": name})
        for name, network in networks(settings).items()
    ]


def check_settings(settings: Settings, data_dir: Path | None) -> None:
    """Raises: InputError for networks that do not fit."""
    check_model_file(settings, "lenet_weights", settings.lenet_data, data_dir)
    if settings.nin_data != "none":
        check_model_file(settings, "nin_weights", settings.nin_data, data_dir)
    elif settings.nin_weights is not None:
        raise InputError("--nin-weights needs --nin-data, which is none: CIFAR-NIN is left out")
