"""Distance of adversarial examples from the image manifold (Section 2.1, Figures 1 and 2).

python -m experiments.kim2019.manifold --preset demo
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd

from experiments.common.checks import DISTINCT, Count, Positive
from experiments.common.experiment import Experiment, Task, execute
from experiments.common.members import Member, Progress
from experiments.common.page import Report
from experiments.kim2019 import manifold_page, study
from experiments.kim2019.adversaries import ADVERSARY, STANDARD, adversary_names, threat_model
from experiments.kim2019.projector import Projector, trained_projector
from tfrobust import evaluate, pgd
from tfrobust.commands import run
from tfrobust.errors import InputError

DISTANCES, ATTACKED, MEASURED = "distances.parquet", "adversarials.npz", "measured.json"
VAE_GAN = "vae-gan"
# radii of training: the paper's, by data set and norm
_RADII = {"l2": (1.0, 2.0, 4.0), "linf": (0.05, 0.1, 0.2)}
_CIFAR_RADII = {"l2": (0.1, 0.4, 1.6), "linf": (0.005, 0.01, 0.02)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(study.TrainingSettings):
    """Classifiers, the VAE-GAN, and the attacks whose distances are measured."""

    adversaries: Annotated[tuple[Annotated[str, ADVERSARY], ...], DISTINCT]
    """Of training; standard training first."""
    vae_examples: Count | None = None
    """The VAE-GAN's training images, the first of the training set; None for all."""
    vae_epochs: Count = 30
    """30 for MNIST, 60 for Fashion-MNIST, 150 for CIFAR-10."""
    vae_beta_2: Positive = 0.999
    """Of its Adam optimizers: .999 in the text for 28x28 images, .9 in the released code."""
    attacked: Count = 10_000
    """Test images that are attacked."""
    attack_epsilon: Positive = 12.0
    """l2 radius of the attacks that are measured."""
    attack_steps: Count = 40
    """Of the attacks that are measured, by cross-entropy."""
    searched: Count = 500
    """Images whose nearest point is searched for as well (footnote 2)."""
    search_steps: Count = 200
    """Gradient steps of the search, from each of three starts."""


def _names(radii: dict[str, tuple[float, ...]], objectives: tuple[str, ...]) -> tuple[str, ...]:
    families = [(norm, objective) for objective in objectives for norm in radii]
    return (
        STANDARD,
        *(name for norm, o in families for name in adversary_names(norm, radii[norm], o)),
    )


PRESETS = {
    "demo": Settings(
        **study.DIGITS,
        adversaries=(STANDARD, "l2-1-xent", "l2-2-xent", "linf-0.1-xent"),
        vae_epochs=6,
        attacked=100,
        attack_steps=10,
        searched=20,
        search_steps=40,
    ),
    "reduced": Settings(
        **study.REDUCED_MNIST,
        adversaries=(*_names(_RADII, ("xent",)), "l2-4-cw", "linf-0.2-cw"),
        vae_examples=20_000,
        vae_epochs=10,
        attacked=500,
        searched=100,
    ),
    "paper": Settings(
        **study.MNIST,
        vae_examples=55_000,
        adversaries=_names(_RADII, ("xent", "cw")),
    ),
}


def check_settings(settings: Settings, data_dir: Path | None) -> None:
    """The first adversary is standard training, with which the others are compared."""
    if settings.adversaries[0] != STANDARD:
        raise InputError(f"--adversaries must begin with {STANDARD}")


def members(settings: Settings) -> list[Member]:
    """The VAE-GAN, then the classifiers."""
    names = (VAE_GAN, *settings.adversaries)
    return [Member(name, name, {"network": name}) for name in names]


def load(settings: Settings, preset: str, data_dir: Path | None) -> dict[str, Any]:
    """Images in [-1, 1] for the classifiers, for the VAE-GAN, and to be attacked."""
    splits = study.load_splits(settings, preset, data_dir)
    vae = study.load_training(settings.dataset, settings.vae_examples, data_dir)
    return {**splits, "vae": vae}


def steps(task: Task, member: Member) -> Iterator[None]:
    """Train; attack; measure distances to the manifold."""
    projector = trained_projector(task, VAE_GAN)
    yield
    settings, test = task.settings, task.data["test"]
    count = min(settings.attacked, len(test))
    images, labels = test.images[:count], test.labels[:count]
    if member.name == VAE_GAN:
        frame = partial(_distances, projector, images, settings, label=labels)
        task.run.frame_step(f"{member.folder}/{DISTANCES}", frame)
        task.run.json_step(f"{member.folder}/{MEASURED}", dict)
        yield
        return
    model = study.classifier(task, member, member.name)
    yield
    task.run.json_step(
        f"{member.folder}/{MEASURED}",
        lambda: {"accuracy": evaluate(model, *test.arrays, batch_size=500)["accuracy"]},
    )

    def attacked() -> dict[str, np.ndarray]:
        threat = threat_model(
            "l2",
            settings.attack_epsilon,
            steps=settings.attack_steps,
            step_sizes=settings.step_sizes,
            floor=settings.floor,
        )
        found = pgd(
            model,
            images,
            labels,
            norm=threat.norm,
            epsilon=threat.epsilon,
            step_size=threat.step_size,
            steps=threat.steps,
            floor=threat.floor,
            value_range=threat.value_range,
            stop="last",
        )
        return {
            "adversarials": np.clip(images + found.perturbation, *threat.value_range),
            "before": study.predicted(model, images),
            "after": found.adversarial_label,
            "zero_gradient": found.zero_gradient,
        }

    arrays = task.run.arrays_step(f"{member.folder}/{ATTACKED}", attacked)
    yield
    judge = study.finished_classifier(task, STANDARD)
    adversarials = arrays["adversarials"]

    def measured() -> pd.DataFrame:
        return _distances(
            projector,
            adversarials,
            settings,
            label=labels,
            before=arrays["before"],
            after=arrays["after"],
            standard_before=study.predicted(judge, images),
            standard_after=study.predicted(judge, adversarials),
            zero_gradient=arrays["zero_gradient"],
        )

    task.run.frame_step(f"{member.folder}/{DISTANCES}", measured)
    yield


def _distances(
    projector: Projector, images: np.ndarray, settings: Settings, **columns: np.ndarray
) -> pd.DataFrame:
    """Distances to the manifold by three projections, one row per image."""
    searched = projector.distance(
        images[: settings.searched], by="search", steps=settings.search_steps
    )
    search = np.full(len(images), np.nan, np.float32)
    search[: len(searched)] = searched
    return pd.DataFrame(
        {
            **columns,
            "mean": projector.distance(images, by="mean"),
            "sample": projector.distance(images, by="sample"),
            "search": search,
        }
    )


def report(task: Task, progress: Progress) -> Report:
    """Figures 1 and 2."""
    frames = {
        member.name: task.run.frame_step(f"{member.folder}/{DISTANCES}", pd.DataFrame)
        for member in progress.finished
    }
    measured = {
        member.name: task.run.read_json(f"{member.folder}/{MEASURED}")
        for member in progress.finished
    }
    attacked = {
        member.name: partial(task.run.arrays_step, f"{member.folder}/{ATTACKED}", dict)
        for member in progress.finished
        if member.name != VAE_GAN
    }
    return manifold_page.report(task, frames, measured, attacked, test_images=VAE_GAN)


EXPERIMENT = Experiment(
    "kim2019-manifold",
    PRESETS,
    study.SCALES,
    load,
    members,
    steps,
    (DISTANCES, MEASURED),
    report,
    check_settings,
    distributed=False,
)
main = partial(execute, EXPERIMENT)


if __name__ == "__main__":
    run(main)
