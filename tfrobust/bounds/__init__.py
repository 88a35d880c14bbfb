"""Layer-wise lower bounds on the perturbation that changes a decision (Peck 2017)."""

from tfrobust.bounds.graph import Step, UnsupportedLayerError, graph_steps
from tfrobust.bounds.operator_norms import operator_norm_upper_bound
from tfrobust.bounds.registry import register_rule
from tfrobust.bounds.result import LayerKappa, RobustnessBound
from tfrobust.bounds.robustness import robustness

__all__ = [
    "LayerKappa",
    "RobustnessBound",
    "Step",
    "UnsupportedLayerError",
    "graph_steps",
    "operator_norm_upper_bound",
    "register_rule",
    "robustness",
]
