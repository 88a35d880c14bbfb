"""Training of a VAE-GAN, resumable, with pictures of what it has learned so far."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tfrobust.arguments import as_count, as_not_negative, as_positive, as_seed
from tfrobust.data import Arrays, Share
from tfrobust.distribution import replica_count
from tfrobust.errors import InputError
from tfrobust.locks import FolderLock
from tfrobust.manifold.pictures import save_pictures
from tfrobust.manifold.steps import LOSSES, compile_step
from tfrobust.manifold.vae_gan import VaeGan
from tfrobust.training import History, NonFiniteLossError, SettingsChangedError, checkpoints

__all__ = ["train"]

Callback = Callable[[dict[str, float], VaeGan], None]
# steps between checks of the losses
_STEPS_PER_CHECK = 20


def train(
    vae: VaeGan,
    images: Any,
    *,
    reconstruction_weight: float,
    epochs: int,
    learning_rate: float = 5e-4,
    beta_1: float = 0.5,
    beta_2: float = 0.9,
    discriminator_steps: int = 1,
    batch_size: int = 100,
    folder: str | Path | None = None,
    checkpoint_every: int | None = None,
    pictures_every: int = 1,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> History:
    """Train encoder, decoder and discriminator, each with an Adam optimizer of its own.

    Every step updates them in turn on the same batch (`tfrobust.manifold.steps`): the encoder
    minimises l1 distance and KL divergence, the decoder the weighted l1 distance and the
    non-saturating loss of the discriminator on reconstructions and prior samples, the discriminator
    the cross-entropy of images against both. Defaults are those of Kim 2019 for MNIST; for
    CIFAR-10 they are learning_rate 2e-4, beta_1 0 and discriminator_steps 5.

    With a `folder`, every epoch ends with a checkpoint in it, and the same call resumes from the
    newest one and ends with the weights of an uninterrupted run. Runs on one device.

    Args:
        vae: new networks.
        images: (count, *image_shape), in the value range.
        reconstruction_weight: of the decoder's l1 distance, summed over pixels: 5e-3 for MNIST,
            5e-4 for Fashion-MNIST, 1e-2 for CIFAR-10 (released code only).
        epochs: total passes over the images, including finished ones; each leaves out the last
            incomplete batch.
        learning_rate: of all three optimizers.
        beta_1: of Adam.
        beta_2: of Adam; the released code has .9 everywhere, the text .999 for MNIST.
        discriminator_steps: updates of the discriminator per step.
        batch_size: images per step.
        folder: for checkpoints and pictures; nothing is written where None.
        checkpoint_every: steps between checkpoints within epochs, counted over all epochs.
        pictures_every: epochs between pictures of reconstructions and samples, in `folder`.
        seed: of the order of images and of all random numbers.
        callbacks: called after each epoch with its record and the VAE-GAN.
        progress: show a bar with the losses.

    Returns:
        `History`: per epoch the mean of each loss.

    Raises:
        InputError: images of another size or outside the range, fewer than a batch, or a setting
            out of range.
        SettingsChangedError: the folder holds training with other settings or images, or more
            epochs.
        FolderInUseError: another process, or another call in this one, is training in the folder.
        DamagedCheckpointError: the newest checkpoint cannot be read.
        NonFiniteLossError: a loss is infinite or NaN; the networks are restored from the newest
            checkpoint, if there is one.
        StorageError: the folder is not writable, or the disk is full.
    """
    if replica_count() > 1:
        raise InputError("a VAE-GAN is trained on one device: leave the tf.distribute scope")
    epochs = as_count("epochs", epochs, 1)
    batch_size = as_count("batch_size", batch_size, 1)
    discriminator_steps = as_count("discriminator_steps", discriminator_steps, 1)
    pictures_every = as_count("pictures_every", pictures_every, 1)
    weight = as_not_negative("reconstruction_weight", reconstruction_weight)
    if checkpoint_every is not None:
        checkpoint_every = as_count("checkpoint_every", checkpoint_every, 1)
        if folder is None:
            raise InputError("checkpoint_every needs a folder to write checkpoints to")
    images = vae.checked(images, "images")
    if len(images) < batch_size:
        raise InputError(f"{len(images)} images do not fill one batch of {batch_size}")
    adam = {
        "learning_rate": as_positive("learning_rate", learning_rate),
        "beta_1": as_not_negative("beta_1", beta_1),
        "beta_2": as_not_negative("beta_2", beta_2),
        "epsilon": 1e-8,
    }
    data = Arrays({"images": images, "labels": np.zeros(len(images), np.int32)}, 1)
    settings = {
        "reconstruction_weight": weight,
        "adam": adam,
        "discriminator_steps": discriminator_steps,
        "batch_size": batch_size,
        "seed": as_seed("seed", seed),
        "images": data.fingerprint(),
    }
    with contextlib.ExitStack() as stack:
        lock = None
        if folder is not None:
            lock = stack.enter_context(FolderLock.for_one_call(folder))
        run = _Run(vae, data, settings, lock)
        run.resume()
        if len(run.records) + (run.step > 0) > epochs:
            raise SettingsChangedError(
                f"{folder} holds training in epoch {len(run.records) + (run.step > 0)}, now "
                f"epochs={epochs}. Give at least as many, or another folder."
            )
        bar = stack.enter_context(
            tqdm(
                total=run.steps,
                disable=None if progress else True,
                leave=False,
                unit="step",
                delay=1,
            )
        )
        while len(run.records) < epochs:
            bar.set_description(f"VAE-GAN, epoch {len(run.records) + 1}/{epochs}")
            record = run.epoch(bar, checkpoint_every)
            if folder is not None and (
                record["epoch"] % pictures_every == 0 or record["epoch"] == epochs
            ):
                save_pictures(vae, images[:16], Path(folder), record["epoch"], seed=seed)
            for callback in callbacks:
                callback(record, vae)
    return History(tuple(run.records))


@dataclasses.dataclass
class _Run:
    """The state of training: records, the step in the epoch, sums of its losses."""

    vae: VaeGan
    data: Arrays
    settings: dict[str, Any]
    lock: FolderLock | None
    records: list[dict[str, float]] = dataclasses.field(default_factory=list)
    step: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.folder = None if self.lock is None else self.lock.folder
        self.batch_size = self.settings["batch_size"]
        self.steps = self.data.examples // self.batch_size
        self.optimizers = {
            name: keras.optimizers.Adam(**self.settings["adam"]) for name in self.vae.networks
        }
        self._sets: dict[str, Any] = {}
        for name, network in self.vae.networks.items():
            self.optimizers[name].build(network.trainable_variables)
            self._sets[name] = network.variables
            self._sets[f"{name}_optimizer"] = self.optimizers[name].variables
        seed = np.random.SeedSequence([self.settings["seed"], 1]).generate_state(1)[0]
        self._take_step = compile_step(
            self.vae,
            self.optimizers,
            weight=self.settings["reconstruction_weight"],
            discriminator_steps=self.settings["discriminator_steps"],
            seed=int(seed.view(np.int32)),
        )

    def resume(self) -> None:
        """Restore the newest checkpoint, if there is one."""
        path = checkpoints.newest(self.folder) if self.folder else None
        if path is None:
            return
        state, values = checkpoints.read(path)
        with checkpoints.intact(path):
            known, records = dict(state["settings"]), [dict(each) for each in state["records"]]
            step, seconds = int(state["step"]), float(state["seconds"])
            sums = {str(name): float(value) for name, value in state["sums"].items()}
        current = json.loads(json.dumps(self.settings))
        for key, value in current.items():
            if known.get(key) != value:
                raise SettingsChangedError(
                    f"{self.folder} holds training with another {key}: {known.get(key)}, now "
                    f"{value}. Give another folder, or delete this one to start again."
                )
        checkpoints.assign(values, self._sets)
        self.records, self.step, self.sums, self.seconds = records, step, sums, seconds

    def epoch(self, bar: tqdm, checkpoint_every: int | None) -> dict[str, float]:
        """Take the remaining steps of an epoch; its record."""
        started = time.perf_counter() - self.seconds
        before = len(self.records) * self.steps
        bar.reset(self.steps)
        bar.update(self.step)
        pending: list[dict[str, tf.Tensor]] = []
        for batch in self._batches():
            number = before + self.step
            pending.append(self._take_step(batch["images"], tf.constant(number)))
            self.step += 1
            due = checkpoint_every is not None and (number + 1) % checkpoint_every == 0
            last = self.step == self.steps
            if due or last or self.step % _STEPS_PER_CHECK == 0:
                self._add(pending)
                bar.update(self.step - bar.n)
                bar.set_postfix({k: f"{v / self.step:.3g}" for k, v in self.sums.items()})
            if due and not last:
                self.seconds = time.perf_counter() - started
                self._save(number + 1)
        record = {
            "epoch": len(self.records) + 1,
            **{name: self.sums[name] / self.steps for name in LOSSES},
            "seconds": round(time.perf_counter() - started, 3),
        }
        self.records.append(record)
        self.step, self.sums, self.seconds = 0, {}, 0.0
        self._save(before + self.steps)
        return record

    def _batches(self) -> Iterator[Any]:
        return iter(
            self.data.training_batches(
                self.batch_size,
                Share.of(self.batch_size),
                seed=self.settings["seed"],
                epoch=len(self.records),
                first_step=self.step,
            )
        )

    def _add(self, pending: list[dict[str, tf.Tensor]]) -> None:
        """Add the losses of the last steps to the sums, one by one, so that they do not depend on
        where a run was resumed."""
        for losses in pending:
            for name in LOSSES:
                self.sums[name] = self.sums.get(name, 0.0) + float(losses[name])
        pending.clear()
        not_finite = [name for name, value in self.sums.items() if not math.isfinite(value)]
        if not_finite:
            epoch = len(self.records) + 1
            where = f"epoch {epoch}, by step {self.step} of {self.steps}"
            path = checkpoints.newest(self.folder) if self.folder else None
            if path is not None:
                checkpoints.assign(checkpoints.read(path)[1], self._sets)
            raise NonFiniteLossError(
                f"{', '.join(not_finite)} is not finite in {where}. Lower the learning rate; "
                "earlier checkpoints are kept."
            )

    def _save(self, step: int) -> None:
        if self.lock is None:
            return
        self.lock.check()
        state = {
            "settings": self.settings,
            "records": self.records,
            "step": self.step,
            "sums": self.sums,
            "seconds": self.seconds,
        }
        checkpoints.save(self.folder, step, self._sets, state)
