"""Seeded faults in what Noack 2020 and Peck 2017 print, and in the objectives of their studies."""

from __future__ import annotations

from benchmarks.faults import Fault

__all__ = ["STUDY_FAULTS"]

_PRINTED = "tfrobust/bounds/printed/formulas.py"
_FORMULAS = ("tests/bounds/test_printed_formulas.py",)
_OBJECTIVES = "tfrobust/objectives"

STUDY_FAULTS = (
    Fault(
        "printed: average pooling pays for its window",
        _PRINTED,
        'if kind in ("max", "average"):',
        'if kind == "max":',
        _FORMULAS,
    ),
    Fault(
        "printed: lp pooling's exponent halved",
        _PRINTED,
        "window ** (2 / float(kind))",
        "window ** (1 / float(kind))",
        _FORMULAS,
    ),
    Fault(
        "printed: Theorem 5.6's maximum mended to a minimum",
        _PRINTED,
        "np.where(finite, delta.max(axis=axes), np.inf)",
        "np.where(finite, delta.min(axis=axes), np.inf)",
        _FORMULAS,
    ),
    Fault(
        "printed: psi without kappa squared",
        _PRINTED,
        "(2 * needed * length + needed**2)",
        "(2 * needed * length)",
        _FORMULAS,
    ),
    Fault(
        "printed: Lemma 5.11 with four for six",
        _PRINTED,
        "+ 6 * bias ** (-beta - 1)",
        "+ 4 * bias ** (-beta - 1)",
        _FORMULAS,
    ),
    Fault(
        "printed: LRN's gradient without its neighbours",
        _PRINTED,
        " + 4 * x**2 * product**2 * squares / base**2",
        "",
        _FORMULAS,
    ),
    Fault(
        "printed: Table 4.1's tanh as it is true",
        _PRINTED,
        '"tanh": (1.0, math.sinh(_U) / math.cosh(_U) ** 3)',
        '"tanh": (1.0, 2 * math.sinh(_U) / math.cosh(_U) ** 3)',
        _FORMULAS,
    ),
    Fault(
        "attack: Algorithm 2.1 always bracketed",
        "tfrobust/attacks/bisection.py",
        "adversarial = is_adversarial(upper) if bracketed else tf.ones_like(usable)",
        "adversarial = is_adversarial(upper)\n        bracketed = True",
        ("tests/attacks/test_attacks_as_printed.py",),
    ),
    Fault(
        "attack: always clipped",
        "tfrobust/attacks/bisection.py",
        "if not clip:",
        "if False:",
        ("tests/attacks/test_attacks_as_printed.py",),
    ),
    Fault(
        "attack: the cold logit always positive",
        "tfrobust/attacks/hot_cold.py",
        "tf.where(signed, values, tf.abs(values))",
        "tf.abs(values)",
        ("tests/attacks/test_attacks_as_printed.py",),
    ),
    Fault(
        "objective: delta of the label",
        f"{_OBJECTIVES}/last_layer.py",
        'if self.of == "predicted":',
        "if False:",
        ("tests/objectives/test_objectives.py",),
    ),
    Fault(
        "contractive: slopes not squared",
        f"{_OBJECTIVES}/contractive.py",
        "squares *= tf.square(slopes)",
        "squares *= slopes",
        ("tests/objectives/test_contractive_penalty.py",),
    ),
    Fault(
        "contractive: a convolution's kernel not squared",
        f"{_OBJECTIVES}/contractive.py",
        "kernel: Any = tf.square(tf.convert_to_tensor(step.layer.kernel))",
        "kernel: Any = tf.abs(tf.convert_to_tensor(step.layer.kernel))",
        ("tests/objectives/test_contractive_penalty.py",),
    ),
    Fault(
        "fast gradient: against the gradient",
        f"{_OBJECTIVES}/fast_gradient.py",
        "batch.x + self.epsilon",
        "batch.x - self.epsilon",
        ("tests/objectives/test_contractive_penalty.py",),
    ),
    Fault(
        "interpretation: the cosine is minimised",
        f"{_OBJECTIVES}/interpretation.py",
        "norm_of(squares, batch.x.dtype) - self.lambda_d",
        "norm_of(squares, batch.x.dtype) + self.lambda_d",
        ("tests/objectives/test_interpretation.py",),
    ),
    Fault(
        "interpretation: the norm of the batch is a mean",
        f"{_OBJECTIVES}/interpretation.py",
        'batch_norm if self.norm_scale == "batch" else mean_norm',
        "mean_norm",
        ("tests/objectives/test_interpretation.py",),
    ),
    Fault(
        "interpretation: threshold without the mean",
        f"{_OBJECTIVES}/interpretation.py",
        "flat - tf.reduce_mean(flat, axis=1, keepdims=True)",
        "flat",
        ("tests/objectives/test_interpretation.py",),
    ),
    Fault(
        "jacobian: eq. (14) with its factor K",
        f"{_OBJECTIVES}/jacobian.py",
        "squares /= batch.logits.shape[1]",
        "squares /= 1",
        ("tests/objectives/test_jacobian_regularization.py",),
    ),
    Fault(
        "jacobian: projections not on the unit sphere",
        f"{_OBJECTIVES}/jacobian.py",
        "return normal / tf.norm(normal, axis=2, keepdims=True)",
        "return normal",
        (
            "tests/objectives/test_jacobian_regularization.py",
            "tests/objectives/test_jacobian_identities.py",
        ),
    ),
    Fault(
        "targets: permuted among other places",
        "tfrobust/saliency/targets.py",
        "values[chosen] = values[rng.permutation(chosen)]",
        "values[chosen] = values[rng.permutation(size)[:count]]",
        ("tests/saliency/test_target_transforms.py",),
    ),
    Fault(
        "tables: standardised by the training split alone",
        "tfrobust/data/tabular.py",
        'reference = table.features if by == "all" else table.features[rows["train"]]',
        'reference = table.features[rows["train"]]',
        ("tests/data/test_tabular.py",),
    ),
    Fault(
        "tables: test and validation exchanged",
        "tfrobust/data/tabular.py",
        '"test": order[first:second], "validation": order[second:]',
        '"validation": order[first:second], "test": order[second:]',
        ("tests/data/test_tabular.py",),
    ),
    Fault(
        "peck2017: deviations the wrong way round",
        "experiments/peck2017/comparison.py",
        "frame[attack].to_numpy() - frame[bound].to_numpy()",
        "frame[bound].to_numpy() - frame[attack].to_numpy()",
        ("tests/experiments/test_peck2017_claims.py",),
    ),
)
