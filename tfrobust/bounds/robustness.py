"""robustness(): a lower bound for each example, by either set of rules."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import keras

from tfrobust.bounds.certified import certified
from tfrobust.bounds.printed import thesis
from tfrobust.bounds.result import RobustnessBound
from tfrobust.classifier import as_images
from tfrobust.errors import InputError, PrintedRulesWarning

__all__ = ["robustness"]


def robustness(
    model: keras.Model,
    x: Any,
    *,
    rules: Literal["thesis", "certified"] = "certified",
    tighten: bool | None = None,
    batch_size: int = 100,
) -> RobustnessBound:
    """A lower bound on the l2 norm of any perturbation that changes each example's class.

    "certified": no perturbation of a smaller norm changes the class. Margins are divided by upper
    bounds of Lipschitz constants, then tightened by backward linear relaxation in a ball (as in
    CROWN, Zhang et al. 2018). "thesis": the formulas of Peck 2017 as printed (Theorems 3.6, 4.2,
    5.1, 5.3, 5.6, 5.9), which are not lower bounds in general: see the warning.

    Perturbations may leave the range of valid pixels; restricted to that range, larger bounds may
    hold.

    Args:
        model: Sequential or Functional classifier; a final softmax is left out.
        x: (batch, *input), in the network's input units.
        rules: which set of rules.
        tighten: with the certified rules, tighten in a ball as well: about six times
            (classes - 1) backward passes per example. None: for at most 20 classes and 16
            nonlinear layers.
        batch_size: examples per call; bounds the memory.

    Raises:
        ValueError: x is malformed, the rules are unknown, weights or logits are not finite, or the
            network computes in less than single precision (certified).
        UnsupportedLayerError: no rule covers a layer; names the supported ones.
        NotLogitsError: the model has no logits to give.
    """
    if rules not in ("thesis", "certified"):
        raise InputError(f'rules must be "thesis" or "certified", got {rules!r}')
    x = as_images(model, x)
    if rules == "certified":
        return certified(model, x, tighten=tighten, batch_size=batch_size)
    if tighten:
        raise InputError('tighten=True is for rules="certified": printed rules stay as printed')
    warnings.warn(
        "the thesis's printed rules can be violated: they are not lower bounds in general "
        '(docs/errata.md); rules="certified" is sound',
        PrintedRulesWarning,
        stacklevel=2,
    )
    return thesis(model, x, batch_size=batch_size)
