"""Etmann 2019 on MNIST: alignment and robustness of classifiers trained by double backpropagation.

    python -m experiments.etmann2019.mnist --preset demo|reduced|paper

demo: scikit-learn's digits, no download, minutes on two cores; shows the pipeline, not the study.
reduced: real MNIST, the paper's range of lambda, a twentieth of its epochs, a shorter search in
the Carlini-Wagner attack. paper: the published settings.
"""

from __future__ import annotations

import dataclasses

from experiments import cli
from experiments.etmann2019 import published
from experiments.etmann2019.cohort import Training, member
from experiments.etmann2019.page import write_page
from tfrobust import data
from tfrobust.runs import Run


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the MNIST half of Etmann 2019."""

    dataset: str
    """Data set, a name of `tfrobust.data.load`."""
    lambdas: tuple[float, ...]
    """Weights of the double-backpropagation penalty, one classifier each."""
    epochs: int
    """Passes over the training set."""
    learning_rate: float
    """Of SGD, at the start."""
    epochs_per_decay: int
    """Epochs after which the learning rate is multiplied by `decay`."""
    evaluated: int
    """Test images that are measured and attacked."""
    carlini_wagner_steps: int
    """Adam steps in each of the attack's binary searches."""
    carlini_wagner_stepsize: float
    """Adam's learning rate in the attack."""
    decay: float = published.DECAY
    """Factor of the learning rate."""
    penalty_scale: str = "batch_mean"
    """Meaning of lambda: "batch_mean" as in the released code, "per_example" as printed."""
    batch_size: int = published.BATCH_SIZE
    """Training examples a step."""
    momentum: float = published.MOMENTUM
    """Of SGD."""
    weight_decay: float = published.WEIGHT_DECAY
    """Times the sum of squares of all weights."""
    carlini_wagner_searches: int = published.CARLINI_WAGNER["binary_search_steps"]
    """Binary search steps of the attack."""
    carlini_wagner_constant: float = published.CARLINI_WAGNER["initial_const"]
    """Initial constant of the attack."""
    evaluation_batch: int = 500
    """Images a call in measuring and attacking."""
    seed: int = 0
    """Of weights, dropout and the order of examples; the same for every classifier."""


PRESETS = {
    "demo": Settings(
        dataset="digits",
        lambdas=(10.0, 1000.0, 10_000.0, 100_000.0),
        epochs=22,
        learning_rate=2e-2,
        epochs_per_decay=18,
        evaluated=100,
        carlini_wagner_steps=30,
        carlini_wagner_stepsize=1e-1,
    ),
    "reduced": Settings(
        dataset="mnist",
        lambdas=published.lambdas(8),
        epochs=10,
        learning_rate=1e-2,
        epochs_per_decay=8,
        evaluated=published.ATTACKED_IMAGES,
        carlini_wagner_steps=150,
        carlini_wagner_stepsize=3e-2,
    ),
    "paper": Settings(
        dataset="mnist",
        lambdas=published.lambdas(),
        epochs=published.EPOCHS,
        learning_rate=published.LEARNING_RATE,
        epochs_per_decay=published.EPOCHS_PER_DECAY,
        evaluated=published.ATTACKED_IMAGES,
        carlini_wagner_steps=published.CARLINI_WAGNER["steps"],
        carlini_wagner_stepsize=published.CARLINI_WAGNER["stepsize"],
    ),
}


def main(arguments: list[str] | None = None) -> None:
    """Run the experiment from the command line."""
    command = cli.parse(PRESETS, "etmann2019-mnist", arguments)
    settings: Settings = command.settings
    run = Run(command.out, settings)
    sets = {
        split: data.load(settings.dataset, split, command.data_dir)
        for split in ("train", "validation", "test")
    }
    how = Training(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        epochs_per_decay=settings.epochs_per_decay,
        decay=settings.decay,
        weight_decay=settings.weight_decay,
        penalty_scale=settings.penalty_scale,
    )
    attack_settings = {
        "gradient": {},
        "basic_iterative": {},
        "carlini_wagner": {
            "binary_search_steps": settings.carlini_wagner_searches,
            "steps": settings.carlini_wagner_steps,
            "stepsize": settings.carlini_wagner_stepsize,
            "initial_const": settings.carlini_wagner_constant,
        },
    }
    members = [
        member(
            run,
            weight,
            how,
            sets,
            attack_settings,
            architecture="mnist_cnn",
            evaluated=settings.evaluated,
            pictured=8,
            batch_size=settings.evaluation_batch,
            seed=settings.seed,
        )
        for weight in settings.lambdas
    ]
    page = write_page(run, command.preset, members, sets)
    cli.show(page, open_it=command.open)


if __name__ == "__main__":
    cli.run(main)
