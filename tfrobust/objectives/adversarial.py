"""Adversarial training: the other terms read images that are perturbed within the step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tfrobust.arguments import check_pixels
from tfrobust.attacks import Stop, ThreatModel, draws_of_batch, search, start_at
from tfrobust.classifier import all_layers, unchanged_statistics
from tfrobust.distribution import place_in_batch, replica_count
from tfrobust.errors import InputError, InputTypeError
from tfrobust.norms import clip_to_range
from tfrobust.objectives.base import Term
from tfrobust.objectives.forward_pass import ForwardPass

__all__ = ["AdversarialTraining"]

# of a number of images: .29 * 100 is a little less than 29
_SLACK = 1e-9


@dataclasses.dataclass(frozen=True)
class AdversarialTraining(Term):
    """Replaces the images of a batch by adversarial ones, found by projected gradient descent.

        threat = ThreatModel(norm=2, epsilon=1.5, steps=40)
        fit(model, data, CrossEntropy() + AdversarialTraining(threat), ...)

    It adds nothing to the objective: the other terms are computed on the perturbed images. The
    original images are `batch.tensors["clean_images"]`. Records of `fit` hold
    `adversarial_accuracy`, the accuracy on the perturbed images, in place of `accuracy`; both where
    some images stay clean. `validation_accuracy` is on clean images.

    Args:
        threat: what the search may change, and how; its value range is that of the images.
        mode: layers are in "inference" mode during the search (Kim 2019), or in "training" mode,
            with dropout and batch statistics (Noack 2020's released code).
        mix: share of the images that stay clean, evenly over the batch.
        stop: "last" takes all steps; "success" keeps the first perturbation that changes the class.
        update_statistics: searches in training mode update the moving averages of batch
            normalisation, once per step of the search, as in PyTorch; else they are left as they
            are.

    Source: Madry et al. 2018; Kim 2019, eq. (1).
    """

    threat: ThreatModel
    _: dataclasses.KW_ONLY
    mode: Literal["inference", "training"] = "inference"
    mix: float = 0.0
    stop: Stop = "last"
    update_statistics: bool = False
    has_value = False

    def __post_init__(self) -> None:
        if not isinstance(self.threat, ThreatModel):
            raise InputTypeError(f"threat must be a ThreatModel, got {type(self.threat).__name__}")
        if self.threat.epsilon == 0:
            raise InputError("epsilon is 0: leave AdversarialTraining out of the objective")
        if self.mode not in ("inference", "training"):
            raise InputError(f'mode must be "inference" or "training", got {self.mode!r}')
        if self.stop not in ("success", "last"):
            raise InputError(f'stop must be "success" or "last", got {self.stop!r}')
        if not 0 <= self.mix < 1:
            raise InputError(f"mix must be at least 0 and less than 1, got {self.mix}")
        if self.update_statistics and self.mode != "training":
            raise InputError('update_statistics needs mode="training"')

    @property
    def accuracy_names(self) -> tuple[str, ...]:
        return ("accuracy", "adversarial_accuracy") if self.mix else ("adversarial_accuracy",)

    def accuracies(self, batch: ForwardPass, hits: tf.Tensor) -> dict[str, tf.Tensor]:
        if not self.mix:
            return {"adversarial_accuracy": tf.reduce_mean(hits)}
        # shares of the global batch: devices may have perturbed different numbers of images
        count = tf.size(hits) * replica_count()
        share = self._clean_before(count) / tf.cast(count, tf.float64)
        perturbed = tf.cast(batch.tensors["perturbed"], hits.dtype)
        share = tf.cast(share, hits.dtype)
        return {
            "accuracy": tf.reduce_mean(hits * (1 - perturbed)) / share,
            "adversarial_accuracy": tf.reduce_mean(hits * perturbed) / (1 - share),
        }

    def check_images(self, images: np.ndarray) -> None:
        self.threat.check_epsilon(images.shape[1:])
        check_pixels("images", images, self.threat.value_range)

    def prepare(
        self, logits_model: keras.Model, tensors: Mapping[str, tf.Tensor], seed: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        taken = [name for name in ("clean_images", "perturbed") if name in tensors]
        if taken:
            raise InputError(f"the data has a tensor {taken[0]!r}, a name of adversarial training")
        images, labels = tensors["images"], tensors["labels"]
        self._check_batch(logits_model, images.shape[0])
        draws = draws_of_batch(self.threat, images, seed)
        if not self.mix:
            perturbed = tf.fill(tf.shape(labels), True)
            adversarial = self._search(logits_model, images, labels, draws)
        else:
            perturbed = self._perturbed(labels)
            rows = tf.where(perturbed)[:, 0]
            chosen = [tf.gather(tensor, rows) for tensor in (images, labels, *draws)]
            found = self._search(logits_model, *chosen[:2], chosen[2:])
            adversarial = tf.tensor_scatter_nd_update(images, rows[:, None], found)
        return {
            **tensors,
            "images": adversarial,
            "clean_images": images,
            "perturbed": perturbed,
        }

    def _perturbed(self, labels: tf.Tensor) -> tf.Tensor:
        """Which rows are attacked: the same of a global batch for any number of devices."""
        rows = tf.shape(labels)[0]
        first, _ = place_in_batch(rows)
        clean = self._clean_before(first + tf.range(rows + 1))
        return clean[1:] == clean[:-1]

    def _clean_before(self, row: tf.Tensor) -> tf.Tensor:
        """How many rows of a global batch before this one stay clean, float64."""
        return tf.floor(tf.cast(row, tf.float64) * self.mix + _SLACK)

    def _check_batch(self, logits: keras.Model, rows: int | None) -> None:
        """Refuse a batch that cannot be mixed, and statistics that cannot be synchronized.

        Args:
            logits: the model.
            rows: of this device's part of a batch, None where it is not known.
        """
        if self.mix and rows and min(self.mix, 1 - self.mix) * rows < 1 - _SLACK:
            raise InputError(
                f"mix {self.mix:g} of {rows} images, a device's part of a batch, leaves none clean "
                "or none to perturb: choose a larger batch_size, or mix=0"
            )
        synchronized = any(getattr(each, "synchronized", False) for each in all_layers(logits))
        if self.mode == "training" and replica_count() > 1 and synchronized:
            raise InputError(
                'with mode="training" the search cannot synchronize the statistics of batch '
                'normalization over devices: set mode="inference", or synchronized=False'
            )

    def _search(
        self, logits: keras.Model, images: tf.Tensor, labels: tf.Tensor, draws: Any
    ) -> tf.Tensor:
        training = self.mode == "training"
        epsilon = tf.fill(tf.shape(labels), tf.cast(self.threat.epsilon, images.dtype))
        kept = [logits] if training and not self.update_statistics else []
        with unchanged_statistics(kept):
            change, _, _ = search(
                logits,
                self.threat,
                images,
                labels,
                epsilon,
                start_at(self.threat, images, epsilon, *draws),
                stop=self.stop,
                training=training,
            )
        return tf.stop_gradient(clip_to_range(images + change, self.threat.value_range))
