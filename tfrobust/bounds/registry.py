"""Rules by layer type: ours, and those that users register."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import keras

from tfrobust.bounds.walker import Step, UnsupportedLayerError

__all__ = ["ACTIVATIONS", "changes", "find_rule", "register_rule", "unsupported"]

Rules = Literal["thesis", "certified"]
Rule = TypeVar("Rule", bound=Callable[..., Any])

_RULES: dict[str, dict[type, Callable[..., Any]]] = {"thesis": {}, "certified": {}}
ACTIVATIONS = {
    "certified": (
        "relu (also leaky, clipped)",
        "elu",
        "selu",
        "softplus",
        "sigmoid",
        "tanh",
        "softsign",
        "silu",
        "gelu",
        "hard_sigmoid",
        "hard_silu",
    ),
    "thesis": ("relu", "sigmoid", "tanh"),
}
# of the thesis, whose rules need more than kappa and stay in `thesis`
BUILT_IN = {
    "certified": (),
    "thesis": (
        *("Dense", "Conv1D", "Conv2D", "BatchNormalization", "LocalResponseNormalization"),
        *("max, average and global pooling", "LpPooling2D", "Flatten", "Reshape", "Dropout"),
    ),
}
_changes = 0


def register_rule(layer_type: type, rules: Rules = "certified") -> Callable[[Rule], Rule]:
    """A decorator that makes a function the rule of a layer type, and of its subclasses.

    A later rule replaces an earlier one; the nearest class in the layer's inheritance counts.

        @register_rule(MyLayer)
        def my_layer(layer, input_shape):
            return 2.0  # an upper bound of its l2 Lipschitz constant

        @register_rule(MyLayer, rules="thesis")
        def my_layer_printed(layer, input_shape, kappa):
            return kappa / 2

    Args:
        layer_type: a class of Keras layers.
        rules: "certified": the rule takes the layer and the input's shape without the batch (a list
            of shapes where it has several inputs) and returns an upper bound of the layer's l2
            Lipschitz constant, of all its inputs taken together; whoever registers it vouches for
            it. "thesis": it takes also kappa (batch,), the size of a change of the layer's
            output that is needed, and returns that of its input.

    Raises:
        TypeError: no class.
        ValueError: unknown rules.
    """
    if not isinstance(layer_type, type):
        raise TypeError(f"layer_type must be a class, got {layer_type!r}")
    if rules not in _RULES:
        raise ValueError(f'rules must be "thesis" or "certified", got {rules!r}')

    def register(rule: Rule) -> Rule:
        global _changes
        _changes += 1
        _RULES[rules][layer_type] = rule
        return rule

    return register


def changes() -> int:
    """How often a rule was registered: what was compiled before is stale."""
    return _changes


def find_rule(step: Step, rules: str) -> Callable[..., Any] | None:
    """A registered rule for the step's layer, or None."""
    for cls in type(step.layer).__mro__:
        if cls in _RULES[rules]:
            return _RULES[rules][cls]
    return None


def unsupported(step: Step, rules: str) -> UnsupportedLayerError:
    """The error for a step that no rule covers."""
    known = ", ".join(sorted({cls.__name__ for cls in _RULES[rules]} | set(BUILT_IN[rules])))
    what = "activation"
    if isinstance(step.layer, keras.Operation):
        what = "layer" if isinstance(step.layer, keras.layers.Layer) else "operation"
    return UnsupportedLayerError(
        f"{what} {step.kind!r} of {step.name!r} has no {rules} rule. Supported layers: {known}; "
        f"activations: {', '.join(ACTIVATIONS[rules])}. For other layers or "
        "settings give a rule with tfrobust.bounds.register_rule."
    )
