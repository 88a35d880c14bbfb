"""MNIST's side of Figures 3 to 10 of Etmann 2019."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.etmann2019.claims import median_robustness, words
from experiments.etmann2019.cohort import ATTACK_NAMES, Member
from tfrobust import figures

LAMBDA = "λ of double backpropagation"


def figure3(members: Sequence[Member]) -> Figure:
    """Median alignment against the median of each robustness estimate, one point a model."""
    names = ("linearized_robustness", *ATTACK_NAMES)
    figure, axes = figures.new(2, 2)
    weights = [member.weight for member in members]
    alignment = [member.summary["median_alignment"] for member in members]
    for axis, name in zip(axes.flat, names, strict=True):
        robustness = [median_robustness(member, name) for member in members]
        last = axis is axes.flat[-1]
        figures.trail(figure, axis, robustness, alignment, weights, LAMBDA if last else None)
        kind = "median distance" if name in ATTACK_NAMES else "median"
        axis.set_xlabel(f"{words(name)}, {kind}")
        axis.set_ylabel("median alignment α")
    return figure


def figure4(members: Sequence[Member]) -> Figure:
    """Alignment against linearized robustness, one point an image."""
    return _pointwise(
        members,
        lambda member: member.alignment["linearized_robustness"],
        lambda member: member.alignment["alignment"],
        ("linearized robustness ρ~", "alignment α"),
    )


def figure5(members: Sequence[Member]) -> Figure:
    """Distance found by Carlini-Wagner against linearized robustness, one point an image."""
    return _pointwise(
        members,
        lambda member: member.alignment["linearized_robustness"],
        lambda member: member.distance("carlini_wagner"),
        ("linearized robustness ρ~", "Carlini-Wagner distance"),
        diagonal=True,
    )


def figure6(members: Sequence[Member]) -> Figure:
    """Medians of the summands of (18): linearized robustness, and the bound of (14)."""
    return _summands(
        members,
        {
            "linearized_robustness": "ρ~",
            "binarized_alignment": "α†",
            "bias_distance": "|β†| / ‖g†‖",
            "theorem2_binarized": "their sum, bound (14)",
        },
    )


def figure7(members: Sequence[Member]) -> Figure:
    """Medians of the summands of (19): linearized robustness, and the bound of (15)."""
    return _summands(
        members,
        {
            "linearized_robustness": "ρ~",
            "alignment": "α",
            "gap_distance": "‖x‖ · ‖g†/‖g†‖ − g/‖g‖‖",
            "bias_distance": "|β†| / ‖g†‖",
            "theorem2": "their sum, bound (15)",
        },
    )


def figure8(members: Sequence[Member]) -> Figure:
    """Medians of the summands of (20): linearized robustness, and the bound of (16)."""
    return _summands(
        members,
        {
            "linearized_robustness": "ρ~",
            "shifted_alignment": "α at the shifted input x̂",
            "shifted_gap_distance": "‖x̂‖ · ‖g†/‖g†‖ − ĝ/‖ĝ‖‖",
            "theorem3": "their sum, bound (16)",
        },
    )


def figure9(members: Sequence[Member]) -> Figure:
    """|<x, g+>| against |Psi+(x)|, one point an image: equal where the bias part vanishes."""
    return _pointwise(
        members,
        lambda member: member.alignment["margin"].abs(),
        lambda member: member.alignment["homogeneous_margin"].abs(),
        ("|Ψ†(x)|", "|⟨x, g†⟩|"),
        diagonal=True,
    )


def figure10(members: Sequence[Member], images: np.ndarray) -> Figure:
    """Gradients of the predicted logit of the least and the most robust model."""
    ordered = _by_robustness(members)
    least, most = ordered[0], ordered[-1]
    count = len(least.gradients)
    return figures.image_grid(
        [
            ("image", images[:count]),
            (f"λ = {least.weight:g}", least.gradients),
            (f"λ = {most.weight:g}", most.gradients),
        ]
    )


CAPTIONS = {
    "figure3": "Median alignment against median robustness by four estimates; one point a model.",
    "figure4": "Pointwise alignment against linearized robustness, for the least robust, the "
    "middle and the most robust model by median linearized robustness.",
    "figure5": "Pointwise distance found by the Carlini-Wagner attack against linearized "
    "robustness; the dashed line is equality.",
    "figure6": "Medians of the summands of (18), the bound (14) of Theorem 2.",
    "figure7": "Medians of the summands of (19), the bound (15) of Theorem 2.",
    "figure8": "Medians of the summands of (20), the bound (16) of Theorem 3.",
    "figure9": "Pointwise homogeneous part of the margin against the margin; on the dashed line "
    "the biases' part is zero.",
    "figure10": "Gradients of the predicted class's logit (blue negative, red positive, each map "
    "on its own scale) of the least and the most robust model.",
}


def draw(members: Sequence[Member], images: np.ndarray, folder: Path) -> dict[str, Path]:
    """All figures as PNG and PDF into `folder`; paths of the PNGs by name, in order.

    Args:
        members: the cohort.
        images: the evaluated images, (count, *input).
        folder: made if need be.
    """
    with figures.style():
        made = {
            "figure3": figure3(members),
            "figure4": figure4(members),
            "figure5": figure5(members),
            "figure6": figure6(members),
            "figure7": figure7(members),
            "figure8": figure8(members),
            "figure9": figure9(members),
            "figure10": figure10(members, images),
        }
    return {name: figures.save(figure, folder, name) for name, figure in made.items()}


def _by_robustness(members: Sequence[Member]) -> list[Member]:
    """Models that are no better than chance have no robustness worth the name: left out."""
    sound = [member for member in members if not member.degenerate] or list(members)
    return sorted(sound, key=lambda member: member.summary["median_linearized_robustness"])


def _three(members: Sequence[Member]) -> list[Member]:
    ordered = _by_robustness(members)
    places = sorted({0, len(ordered) // 2, len(ordered) - 1})
    return [ordered[place] for place in places]


def _pointwise(
    members: Sequence[Member],
    x: Callable[[Member], np.ndarray],
    y: Callable[[Member], np.ndarray],
    labels: tuple[str, str],
    *,
    diagonal: bool = False,
) -> Figure:
    chosen = _three(members)
    figure, axes = figures.new(1, len(chosen))
    for axis, member in zip(axes[0], chosen, strict=True):
        values = np.asarray(x(member)), np.asarray(y(member))
        figures.pointwise(axis, *values, diagonal=diagonal, title=f"λ = {member.weight:g}")
        axis.set_xlabel(labels[0])
        axis.set_ylabel(labels[1])
    return figure


def _summands(members: Sequence[Member], names: dict[str, str]) -> Figure:
    figure, axes = figures.new(1, 1, width=6.4, height=3.2)
    axis = axes[0, 0]
    ordered = sorted(members, key=lambda member: member.weight)
    weights = [member.weight for member in ordered]
    for name, label in names.items():
        values = [_median(member, name) for member in ordered]
        whole = name == "linearized_robustness"
        total = name.startswith("theorem")
        axis.plot(
            weights,
            values,
            marker="o",
            markersize=3.5,
            linewidth=2 if whole else 1.2,
            color="black" if whole else None,
            linestyle="--" if total else "-",
            label=label,
        )
    axis.set_xscale("log")
    axis.set_xlabel(LAMBDA)
    axis.set_ylabel("median over images")
    axis.set_ylim(bottom=0)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _median(member: Member, name: str) -> float:
    """Median of a measure, or of a product of two that is a summand of a bound."""
    table = member.alignment
    products = {
        "gap_distance": ("input_norm", "gradient_gap"),
        "shifted_gap_distance": ("shifted_input_norm", "shifted_gradient_gap"),
    }
    if name in products:
        first, second = products[name]
        values = (table[first] * table[second]).to_numpy()
        return float(np.median(values[np.isfinite(values)]))
    return member.summary[f"median_{name}"]
