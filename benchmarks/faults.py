"""The seeded faults of `benchmarks.mutations`, by the concept that they break."""

from __future__ import annotations

import dataclasses

__all__ = ["FAULTS", "Fault"]


@dataclasses.dataclass(frozen=True)
class Fault:
    """One change of one line, and the tests of the concept that it breaks."""

    name: str
    path: str
    before: str
    """A text that occurs once in the file."""
    after: str
    tests: tuple[str, ...]

    def applied_to(self, text: str) -> str:
        """The file's text with the fault in it.

        Raises:
            LookupError: `before` does not occur exactly once: the code has changed.
        """
        if text.count(self.before) != 1:
            raise LookupError(f"{self.path} holds {self.before!r} {text.count(self.before)} times")
        return text.replace(self.before, self.after)


FAULTS = (
    Fault(
        "norms: the l2 norm without its root",
        "tfrobust/norms.py",
        "tf.sqrt(safe)",
        "safe",
        ("tests/test_norms.py",),
    ),
    Fault(
        "norms: l1 projection's rank off by one",
        "tfrobust/norms.py",
        "tf.range(1, tf.shape(flat)[1] + 1, dtype=x.dtype)",
        "tf.range(2, tf.shape(flat)[1] + 2, dtype=x.dtype)",
        ("tests/test_norms.py",),
    ),
    Fault(
        "alignment: signed instead of absolute",
        "tfrobust/alignment/measure.py",
        "tf.abs(inner(x, gradient)) / gradient_norm",
        "inner(x, gradient) / gradient_norm",
        ("tests/alignment",),
    ),
    Fault(
        "alignment: Theorem 2 without ||x||",
        "tfrobust/alignment/measure.py",
        "alignment + input_norm * gap + bias_distance",
        "alignment + gap + bias_distance",
        ("tests/alignment",),
    ),
    Fault(
        "alignment: Theorem 3 shifts the wrong way",
        "tfrobust/alignment/measure.py",
        "x + per_example(shift, x) * binarized",
        "x - per_example(shift, x) * binarized",
        ("tests/alignment",),
    ),
    Fault(
        "runner-up: the second largest logit instead of eq. (9)'s minimiser",
        "tfrobust/alignment/runner_up.py",
        "tf.argmin(ratios, axis=1)",
        "tf.argmin(margins, axis=1)",
        ("tests/alignment",),
    ),
    Fault(
        "sketch: one degree of freedom too many",
        "tfrobust/alignment/sketch.py",
        "stats.chi2.isf(tail, directions)",
        "stats.chi2.isf(tail, directions + 8)",
        ("tests/alignment",),
    ),
    Fault(
        "sketch: no allowance for rounding",
        "tfrobust/alignment/sketch.py",
        "ROUNDING = 16",
        "ROUNDING = 0",
        ("tests/alignment",),
    ),
    Fault(
        "decomposition: moving means are no biases",
        "tfrobust/alignment/decomposition.py",
        '("bias", "beta", "moving_mean")',
        '("bias", "beta")',
        ("tests/alignment",),
    ),
    Fault(
        "saliency: the loss gradient's sign",
        "tfrobust/saliency/explained.py",
        "return softmax(values) - one_hot",
        "return one_hot - softmax(values)",
        ("tests/saliency",),
    ),
    Fault(
        "objectives: batch_mean divides by N, not N^2",
        "tfrobust/objectives/input_gradients.py",
        "penalty /= tf.square(tf.cast(count, penalty.dtype))",
        "penalty /= tf.cast(count, penalty.dtype)",
        ("tests/objectives",),
    ),
    Fault(
        "objectives: the alignment penalty's sign",
        "tfrobust/objectives/input_gradients.py",
        "products - tf.square(inner(batch.x, gradient))",
        "tf.square(inner(batch.x, gradient)) - products",
        ("tests/objectives",),
    ),
    Fault(
        "objectives: last layer's squared distances",
        "tfrobust/objectives/last_layer.py",
        "tf.sqrt(squares + tf.eye(",
        "(squares + tf.eye(",
        ("tests/objectives",),
    ),
    Fault(
        "training: gradients of replicas are summed, not averaged",
        "tfrobust/training/steps.py",
        "tf.add_n(list(parts.values())) / count",
        "tf.add_n(list(parts.values()))",
        ("tests/training", "tests/distribution"),
    ),
    Fault(
        "training: the same order in every epoch",
        "tfrobust/data/stream.py",
        "np.random.default_rng([seed, epoch])",
        "np.random.default_rng([seed])",
        ("tests/training",),
    ),
    Fault(
        "training: the loss scale never falls",
        "tfrobust/training/precision.py",
        "tf.where(grown, scale * 2, scale), scale / 2)",
        "tf.where(grown, scale * 2, scale), scale)",
        ("tests/training",),
    ),
    Fault(
        "layers: response normalisation's window is one short",
        "tfrobust/layers.py",
        "np.abs(channel[:, None] - channel) <= self.depth_radius",
        "np.abs(channel[:, None] - channel) < self.depth_radius",
        ("tests/test_layers.py",),
    ),
    Fault(
        "attacks: bisection ends at the last failure",
        "tfrobust/attacks/bisection.py",
        "_, _, smallest = tf.while_loop(",
        "_, smallest, _ = tf.while_loop(",
        ("tests/attacks",),
    ),
    Fault(
        "attacks: images leave the range",
        "tfrobust/attacks/bisection.py",
        "clip_to_range(x + per_example(epsilon, x) * direction, (low, high))",
        "x + per_example(epsilon, x) * direction",
        ("tests/attacks",),
    ),
    Fault(
        "bounds: max pooling's overlap forgotten",
        "tfrobust/bounds/operations/pooling.py",
        "math.sqrt(self.overlap)",
        "1.0",
        ("tests/bounds",),
    ),
    Fault(
        "bounds: float32 rounds to nothing",
        "tfrobust/bounds/operations/rounding.py",
        "UNIT_ROUNDOFF = 2.0**-24",
        "UNIT_ROUNDOFF = 0.0",
        ("tests/bounds",),
    ),
    Fault(
        "bounds: average pooling's norm without its root",
        "tfrobust/bounds/operator_norms/layers.py",
        "1 / math.sqrt(math.prod(shape[:-1])) * (1 + SLACK)",
        "1 / math.prod(shape[:-1]) * (1 + SLACK)",
        ("tests/bounds",),
    ),
    Fault(
        "bounds: Theorem 4.2's factor 2",
        "tfrobust/bounds/printed/formulas.py",
        "jacobian**2 + 2 * scale * kappa",
        "jacobian**2 + scale * kappa",
        ("tests/bounds",),
    ),
    Fault(
        "bounds: Theorem 3.6 divides by the wrong class's weights",
        "tfrobust/bounds/printed/formulas.py",
        "weights.T[:, None] - weights.T[None], axis=2)",
        "weights.T[:, None] + weights.T[None], axis=2)",
        ("tests/bounds",),
    ),
    Fault(
        "data: one training image is also validated on",
        "tfrobust/data/loaders.py",
        '"validation": (1197, 1397)',
        '"validation": (1196, 1397)',
        ("tests/data",),
    ),
    Fault(
        "data: the last place of a crop is never drawn",
        "tfrobust/data/crops.py",
        "0, resized[0] - size[0])",
        "0, resized[0] - size[0] - 1)",
        ("tests/data",),
    ),
    Fault(
        "data: records begin one byte late",
        "tfrobust/data/imagenet/tfrecords.py",
        "offsets.append(start + _HEADER)",
        "offsets.append(start + _HEADER + 1)",
        ("tests/data",),
    ),
    Fault(
        "search: steps down instead of up",
        "tfrobust/attacks/search.py",
        "change + per_example(length, x) * _direction(threat, gradient)",
        "change - per_example(length, x) * _direction(threat, gradient)",
        ("tests/attacks",),
    ),
    Fault(
        "search: the l2 start's radius is uniform",
        "tfrobust/attacks/search.py",
        "tf.pow(fraction, 1 / inputs)",
        "fraction",
        ("tests/attacks",),
    ),
    Fault(
        "robust accuracy: an example counts that resists one restart",
        "tfrobust/attacks/robust_accuracy.py",
        "self.correct & self.resisted.all(axis=1)",
        "self.correct & self.resisted.any(axis=1)",
        ("tests/attacks",),
    ),
    Fault(
        "adversarial training: the search moves batch statistics",
        "tfrobust/classifier/statistics.py",
        "variable.assign(value)",
        "variable.assign(variable)",
        ("tests/objectives", "tests/manifold"),
    ),
    Fault(
        "manifold: the KL divergence's sign of the log variance",
        "tfrobust/manifold/steps.py",
        "tf.exp(log_variance) - log_variance - 1",
        "tf.exp(log_variance) + log_variance - 1",
        ("tests/manifold",),
    ),
    Fault(
        "retraining: ROAR's area under the curve",
        "tfrobust/retraining/curves.py",
        '1 - curve.area if self.curve.method == "roar"',
        'curve.area if self.curve.method == "roar"',
        ("tests/retraining",),
    ),
)
