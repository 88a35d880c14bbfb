"""The study's VAE-GANs, trained or loaded (appendix A.3)."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

import reference_models
from experiments.common.experiment import Task
from experiments.common.train import checked_model, save_model, say
from tfrobust import manifold
from tfrobust.distribution import is_chief

__all__ = ["Projector", "trained_projector"]


@dataclasses.dataclass(frozen=True)
class VaeSettings:
    """What depends on the data set; the decoder's weights are in the released code only."""

    model: str
    reconstruction_weight: float
    learning_rate: float
    beta_1: float
    discriminator_steps: int


_MNIST = VaeSettings("vae_gan_28", 5e-3, 5e-4, 0.5, 1)
SETTINGS = {
    "digits": _MNIST,
    "mnist": _MNIST,
    "fashion_mnist": dataclasses.replace(_MNIST, reconstruction_weight=5e-4),
    "cifar10": VaeSettings("vae_gan_32", 1e-2, 2e-4, 0.0, 5),
}


_NETWORKS = ("encoder", "decoder", "discriminator")


@dataclasses.dataclass(frozen=True)
class Projector:
    """A trained VAE-GAN."""

    vae: manifold.VaeGan
    seed: int

    def distance(
        self,
        images: np.ndarray,
        *,
        by: Literal["mean", "sample", "search"],
        steps: int = 1,
    ) -> np.ndarray:
        """l2 distances of images in [-1, 1] to the manifold, (count,) float32."""
        found = manifold.distance(self.vae, images, by=by, steps=steps, seed=self.seed)
        return found.distance


@functools.lru_cache(maxsize=1)
def _loaded(folder: Path, seed: int) -> Projector:
    """A finished VAE-GAN, the same object for all members: its functions are traced once."""
    networks = {name: reference_models.load(folder / f"{name}.keras") for name in _NETWORKS}
    return Projector(manifold.VaeGan(**networks), seed)


def trained_projector(task: Task, folder: str) -> Projector:
    """The VAE-GAN in a folder of the run; trained, or resumed, if it is not finished."""
    settings = task.settings
    paths = {name: f"{folder}/{name}.keras" for name in _NETWORKS}
    if all(task.run.has(path) for path in paths.values()):
        for path in paths.values():
            checked_model(task.run, path)
        return _loaded(task.run.folder / folder, settings.seed)
    data = task.data["vae"]
    chosen = SETTINGS[settings.dataset]
    say(f"VAE-GAN: training for {settings.vae_epochs} epochs")
    keras.utils.set_random_seed(settings.seed)
    vae = reference_models.build(chosen.model, variant=settings.variant)
    beta_2 = 0.9 if settings.dataset == "cifar10" else settings.vae_beta_2
    options: dict[str, Any] = {
        "reconstruction_weight": chosen.reconstruction_weight,
        "learning_rate": chosen.learning_rate,
        "beta_1": chosen.beta_1,
        "beta_2": beta_2,
        "discriminator_steps": chosen.discriminator_steps,
    }
    history = manifold.train(
        vae,
        data.images,
        **options,
        epochs=settings.vae_epochs,
        folder=task.run.folder / folder / "training",
        checkpoint_every=500,
        seed=settings.seed,
    )
    task.run.write_json(f"{folder}/history.json", list(history.records))
    provenance = {
        **options,
        "epochs": settings.vae_epochs,
        "seed": settings.seed,
        "data": dataclasses.asdict(data.provenance),
    }
    if is_chief():
        for name, model in vae.networks.items():
            save_model(task.run, paths[name], model, provenance)
    return _loaded(task.run.folder / folder, settings.seed)
