"""Rules by layer type: built-in ones, and those that users register."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import keras

from tfrobust.bounds.graph import Step, UnsupportedLayerError, is_plain
from tfrobust.errors import InputError, InputTypeError

__all__ = [
    "ACTIVATIONS",
    "built_in_rule",
    "find_rule",
    "is_user_rule",
    "register_rule",
    "registrations",
    "unsupported",
]

Rules = Literal["thesis", "certified"]
Rule = TypeVar("Rule", bound=Callable[..., Any])


class _Entry(NamedTuple):
    rule: Callable[..., Any]
    built_in: bool


_RULES: dict[str, dict[type, _Entry]] = {"thesis": {}, "certified": {}}
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
    "thesis": ("relu", "sigmoid", "softplus", "tanh"),
}
# in the thesis one rule covers consecutive dense layers
BUILT_IN = {"certified": set(), "thesis": {"Dense"}}
_ACTIVATION_LAYERS = (keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU)
_registrations = 0


def register_rule(layer_type: type, *, rules: Rules = "certified") -> Callable[[Rule], Rule]:
    """Decorator: register a function as the rule of a layer type and of its subclasses.

    A later rule replaces an earlier one, built-in rules included; the nearest class in the layer's
    inheritance counts. The activation fused into Keras's dense and convolutional layers is a
    separate step, not part of their rule; likewise for subclasses that only add settings. A
    subclass that computes something else is one step together with its activation, and the built-in
    rule of its base class does not cover it.

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
            Lipschitz constant, with respect to all its inputs jointly. The constant is not checked;
            its rounding errors are estimated, and `proved_in_float32` is False. "thesis": the rule
            also takes kappa (batch,), the l2 norm of the change of the layer's output that is
            needed, and returns that of its input, (batch,).

    Raises:
        TypeError: `layer_type` is not a class.
        ValueError: unknown rules.
    """
    return _decorator(layer_type, rules, built_in=False)


def built_in_rule(layer_type: type, *, rules: Rules = "certified") -> Callable[[Rule], Rule]:
    """The same for built-in rules; they do not cover subclasses that compute something else."""
    return _decorator(layer_type, rules, built_in=True)


def _decorator(layer_type: type, rules: Rules, built_in: bool) -> Callable[[Rule], Rule]:
    if not isinstance(layer_type, type):
        raise InputTypeError(f"layer_type must be a class, got {layer_type!r}")
    if rules not in _RULES:
        raise InputError(f'rules must be "thesis" or "certified", got {rules!r}')

    def register(rule: Rule) -> Rule:
        global _registrations
        _registrations += 1
        _RULES[rules][layer_type] = _Entry(rule, built_in)
        return rule

    return register


def registrations() -> int:
    """Number of registrations so far; functions compiled at another number are stale."""
    return _registrations


def find_rule(step: Step, rules: str) -> Callable[..., Any] | None:
    """The rule for the step's layer, or None."""
    entry = _find(step, rules)
    return entry.rule if entry else None


def is_user_rule(step: Step, rules: str) -> bool:
    """Whether a user registered the step's rule."""
    entry = _find(step, rules)
    return entry is not None and not entry.built_in


def _find(step: Step, rules: str) -> _Entry | None:
    for cls in type(step.layer).__mro__:
        entry = _RULES[rules].get(cls)
        if entry and (not entry.built_in or is_plain(step.layer, cls)):
            return entry
    return None


def unsupported(step: Step, rules: str) -> UnsupportedLayerError:
    """The error for a step that no rule covers."""
    supported = ", ".join(sorted({cls.__name__ for cls in _RULES[rules]} | BUILT_IN[rules]))
    category, kind, reason = "activation", step.kind, ""
    if isinstance(step.layer, keras.layers.Activation):
        kind = getattr(step.layer.activation, "__name__", kind)
    elif isinstance(step.layer, keras.Operation):
        category = "layer" if isinstance(step.layer, keras.layers.Layer) else "operation"
        if isinstance(step.layer, _ACTIVATION_LAYERS):
            reason = ", or not with these settings (thresholds; slopes outside 0 to 1)"
        elif any(cls in _RULES[rules] for cls in type(step.layer).__mro__[1:]):
            reason = ": it computes something other than the class that it is derived from"
    return UnsupportedLayerError(
        f"{category} {kind!r} of {step.name!r} has no {rules} rule{reason}. Supported layers: "
        f"{supported}; activations: {', '.join(ACTIVATIONS[rules])}. For other layers or "
        "settings register a rule with tfrobust.bounds.register_rule."
    )
