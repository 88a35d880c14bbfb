"""Rules by layer type: ours, and those that users register."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import keras

from tfrobust.bounds.graph import Step, UnsupportedLayerError, is_plain
from tfrobust.errors import InputError, InputTypeError

__all__ = [
    "ACTIVATIONS",
    "built_in_rule",
    "changes",
    "find_rule",
    "register_rule",
    "registered",
    "unsupported",
]

Rules = Literal["thesis", "certified"]
Rule = TypeVar("Rule", bound=Callable[..., Any])


class _Known(NamedTuple):
    rule: Callable[..., Any]
    built_in: bool


_RULES: dict[str, dict[type, _Known]] = {"thesis": {}, "certified": {}}
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
# the thesis takes dense layers in a row as one
BUILT_IN = {"certified": set(), "thesis": {"Dense"}}
_ACTIVATION_LAYERS = (keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU)
_changes = 0


def register_rule(layer_type: type, *, rules: Rules = "certified") -> Callable[[Rule], Rule]:
    """A decorator that makes a function the rule of a layer type, and of its subclasses.

    A later rule replaces an earlier one, the library's own included; the nearest class in the
    layer's inheritance counts. The activation that Keras's dense and convolutional layers fuse is a
    step of its own, which their rule leaves out; so it is for subclasses that add settings only. A
    subclass that computes something else is one step with its activation, and the library's rule
    for its base does not cover it.

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
            it. Its rounding errors are estimated, and `proved_in_float32` is False. "thesis": it
            takes also kappa (batch,), the size of a change of the layer's output that is needed,
            and returns that of its input, (batch,).

    Raises:
        TypeError: no class.
        ValueError: unknown rules.
    """
    return _adder(layer_type, rules, built_in=False)


def built_in_rule(layer_type: type, *, rules: Rules = "certified") -> Callable[[Rule], Rule]:
    """The same for the library's own rules, which hold for what a class computes itself."""
    return _adder(layer_type, rules, built_in=True)


def _adder(layer_type: type, rules: Rules, built_in: bool) -> Callable[[Rule], Rule]:
    if not isinstance(layer_type, type):
        raise InputTypeError(f"layer_type must be a class, got {layer_type!r}")
    if rules not in _RULES:
        raise InputError(f'rules must be "thesis" or "certified", got {rules!r}')

    def register(rule: Rule) -> Rule:
        global _changes
        _changes += 1
        _RULES[rules][layer_type] = _Known(rule, built_in)
        return rule

    return register


def changes() -> int:
    """How often a rule was registered: what was compiled before is stale."""
    return _changes


def find_rule(step: Step, rules: str) -> Callable[..., Any] | None:
    """The rule for the step's layer, or None."""
    known = _find(step, rules)
    return known.rule if known else None


def registered(step: Step, rules: str) -> bool:
    """Whether the step's rule is a user's."""
    known = _find(step, rules)
    return known is not None and not known.built_in


def _find(step: Step, rules: str) -> _Known | None:
    for cls in type(step.layer).__mro__:
        known = _RULES[rules].get(cls)
        if known and (not known.built_in or is_plain(step.layer, cls)):
            return known
    return None


def unsupported(step: Step, rules: str) -> UnsupportedLayerError:
    """The error for a step that no rule covers."""
    known = ", ".join(sorted({cls.__name__ for cls in _RULES[rules]} | BUILT_IN[rules]))
    what, kind, why = "activation", step.kind, ""
    if isinstance(step.layer, keras.layers.Activation):
        kind = getattr(step.layer.activation, "__name__", kind)
    elif isinstance(step.layer, keras.Operation):
        what = "layer" if isinstance(step.layer, keras.layers.Layer) else "operation"
        if isinstance(step.layer, _ACTIVATION_LAYERS):
            why = ", or not with these settings (thresholds; slopes outside 0 to 1)"
        elif any(cls in _RULES[rules] for cls in type(step.layer).__mro__[1:]):
            why = ": it computes something else than the class that it is derived from"
    return UnsupportedLayerError(
        f"{what} {kind!r} of {step.name!r} has no {rules} rule{why}. Supported layers: {known}; "
        f"activations: {', '.join(ACTIVATIONS[rules])}. For other layers or "
        "settings give a rule with tfrobust.bounds.register_rule."
    )
