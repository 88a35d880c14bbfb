"""Figures 2 to 10 of Etmann 2019, of one cohort or of two side by side."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from experiments.common.page import Drawing
from experiments.etmann2019.claims import attacks_of, estimate_name, median_robustness
from experiments.etmann2019.results import ATTACK_NAMES, Cohort, Member
from tfrobust.report import figures

__all__ = ["caption", "drawings", "is_imagenet", "lambda_label", "plot"]

LAMBDA = "λ of double backpropagation"
_PICTURES_PER_ROW = 4  # in half a figure
_FEW = 200  # images, whose points are drawn larger
_SQUEEZED = 30  # times linearized robustness, and it would lie on the axis


def is_imagenet(cohort: Cohort) -> bool:
    """Whether a cohort is the ImageNet half of the study: its medians are Figure 2, not 3."""
    return cohort.name.startswith("ImageNet")


def lambda_label(weight: float) -> str:
    """A lambda in full digits: "λ = 3,162,000"."""
    return f"λ = {weight:,.10g}"


def drawings(cohorts: Sequence[Cohort]) -> list[Drawing]:
    """All figures that the cohorts have, in the paper's order.

    Args:
        cohorts: one, or two that are drawn from left to right.
    """
    return [
        Drawing(
            f"Figure {name.removeprefix('figure')}",
            caption(name, cohorts),
            name,
            functools.partial(plot, name, cohorts),
        )
        for name in _FIGURES
        if _shown(name, cohorts)
    ]


def plot(name: str, cohorts: Sequence[Cohort]) -> Figure:
    """One of the figures of `drawings`, of those cohorts that have it."""
    with figures.style():
        return _FIGURES[name][0](_shown(name, cohorts))


def caption(name: str, cohorts: Sequence[Cohort]) -> str:
    """What a figure of `drawings` shows, and of which cohort."""
    text, shown = _FIGURES[name][1], _shown(name, cohorts)
    if len(shown) == 2:
        return f"{text} Left: {shown[0].name}; right: {shown[1].name}."
    return text if len(cohorts) == 1 else f"{text} On {shown[0].name}."


def _shown(name: str, cohorts: Sequence[Cohort]) -> list[Cohort]:
    if name in ("figure2", "figure3"):
        return [cohort for cohort in cohorts if is_imagenet(cohort) == (name == "figure2")]
    if name == "figure5":
        return [cohort for cohort in cohorts if "carlini_wagner" in attacks_of(cohort.members)]
    return list(cohorts)


def _medians(cohorts: Sequence[Cohort]) -> Figure:
    """One point per model, a panel for each robustness estimate."""
    names = [("linearized_robustness", *attacks_of(cohort.members)) for cohort in cohorts]
    most = max(map(len, names))
    rows, columns = (2, 2) if most == 4 else (1, most)
    figure, halves = _halves(cohorts, width=3.4 * columns, height=2.9 * rows)
    for cohort, estimates, half in zip(cohorts, names, halves, strict=True):
        axes = half.subplots(rows, columns, squeeze=False)
        weights = [member.weight for member in cohort.members]
        alignment = [member.summary["median_alignment"] for member in cohort.members]
        for axis, name in zip(_used(axes, len(estimates)), estimates, strict=True):
            robustness = [median_robustness(member, name) for member in cohort.members]
            label = LAMBDA if name == estimates[-1] else None
            figures.trail(half, axis, robustness, alignment, weights, label)
            kind = "median distance" if name in ATTACK_NAMES else "median"
            axis.set(xlabel=f"{estimate_name(name)}, {kind}", ylabel="median alignment α")
    return figure


def _halves(
    cohorts: Sequence[Cohort], *, width: float, height: float
) -> tuple[Figure, list[Figure | SubFigure]]:
    names = [cohort.name for cohort in cohorts]
    return figures.side_by_side(names, width=width, height=height)


def _used(axes: np.ndarray, count: int) -> list[Axes]:
    """The first `count` axes; the others go."""
    for axis in axes.flat[count:]:
        axis.remove()
    return list(axes.flat[:count])


def _by_robustness(cohort: Cohort) -> list[Member]:
    """Models that are no better than chance have no robustness worth the name: left out.

    They are taken where there are no others.
    """
    median = functools.partial(median_robustness, name="linearized_robustness")
    known = [member for member in cohort.members if np.isfinite(median(member))]
    sound = [member for member in known if not member.degenerate]
    return sorted(sound or known, key=median) or list(cohort.members)


def _three(cohort: Cohort) -> list[tuple[str, Member]]:
    """The least robust, the middle and the most robust model, in words; fewer where there are."""
    ordered = _by_robustness(cohort)
    places = sorted({0, len(ordered) // 2, len(ordered) - 1})
    names = {1: ("",), 2: ("least robust, ", "most robust, ")}
    names = names.get(len(places), ("least robust, ", "middle, ", "most robust, "))
    return [
        (name + lambda_label(ordered[place].weight), ordered[place])
        for name, place in zip(names, places, strict=True)
    ]


def _pointwise(
    cohorts: Sequence[Cohort],
    x: Callable[[Member], np.ndarray],
    y: Callable[[Member], np.ndarray],
    labels: tuple[str, str],
    *,
    diagonal: bool = False,
) -> Figure:
    chosen = [_three(cohort) for cohort in cohorts]
    most = max(map(len, chosen))
    alone = len(cohorts) == 1
    rows, columns, width, height = (1, most, 3.4, 2.9) if alone else (most, 1, 4.2, 2.7)
    figure, halves = _halves(cohorts, width=width * columns, height=height * rows)
    for models, half in zip(chosen, halves, strict=True):
        axes = half.subplots(rows, columns, squeeze=False)
        for axis, (title, member) in zip(_used(axes, len(models)), models, strict=True):
            values = np.asarray(x(member)), np.asarray(y(member))
            figures.pointwise(axis, *values, diagonal=diagonal, title=title)
            if np.isfinite(values).all(axis=0).sum() < _FEW:
                axis.collections[0].set(sizes=[20], alpha=0.7)
            axis.set(xlabel=labels[0], ylabel=labels[1])
    return figure


def _summands(cohorts: Sequence[Cohort], names: dict[str, str]) -> Figure:
    figure, halves = _halves(cohorts, width=6.4 if len(cohorts) == 1 else 4.4, height=3.2)
    for cohort, half in zip(cohorts, halves, strict=True):
        axis = half.subplots()
        ordered = sorted(cohort.members, key=lambda member: member.weight)
        weights = [member.weight for member in ordered]
        values = {name: [_median(member, name) for member in ordered] for name in names}
        for name, label in names.items():
            whole = name == "linearized_robustness"
            total = name.startswith("theorem")
            axis.plot(
                weights,
                values[name],
                marker="o",
                markersize=3.5,
                linewidth=2 if whole else 1.2,
                color="black" if whole else None,
                linestyle="--" if total else "-",
                label=label,
            )
        axis.set(xscale="log", xlabel=LAMBDA, ylabel="median over images")
        most = {name: np.fmax.reduce(each, initial=0) for name, each in values.items()}
        if max(most.values()) > _SQUEEZED * most["linearized_robustness"] > 0:
            axis.set(yscale="log", ylabel="median over images (log scale)")
        else:
            axis.set_ylim(bottom=0)
    if len(cohorts) == 1:
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=5)
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
        values = values[np.isfinite(values)]
        return float(np.median(values)) if len(values) else float("nan")
    return member.summary[f"median_{name}"]


def _maps(cohorts: Sequence[Cohort]) -> Figure:
    """Gradients of the predicted logit of the least and the most robust model, under images."""
    if len(cohorts) == 1:
        return figures.image_grid(_saliency(cohorts[0]))
    # fewer in a row, or they would be too small to see
    grids = [_folded(_saliency(cohort)) for cohort in cohorts]
    lines = max(map(len, grids))
    figure, halves = _halves(cohorts, width=4.9, height=0.98 * lines)
    for grid, half in zip(grids, halves, strict=True):
        figures.image_grid(grid, figure=half)
    return figure


def _saliency(cohort: Cohort) -> list[tuple[str, np.ndarray]]:
    """Rows of the pictures and of the least and the most robust model's gradients."""
    ordered = _by_robustness(cohort)
    models = ordered if len(ordered) == 1 else (ordered[0], ordered[-1])
    rows = [
        (lambda_label(member.weight).replace("= ", "=\n"), member.gradients) for member in models
    ]
    return [("image", cohort.pictures[: len(rows[0][1])]), *rows]


def _folded(rows: list[tuple[str, np.ndarray]]) -> list[tuple[str, np.ndarray]]:
    """The same rows cut into shorter ones, one block of them below the other."""
    starts = range(0, len(rows[0][1]), _PICTURES_PER_ROW)
    return [
        (name, images[start : start + _PICTURES_PER_ROW])
        for start in starts
        for name, images in rows
    ]


_BY_MEDIAN = "Median alignment against median robustness by each estimate; one point per model."
# how to draw it, and what it shows
_FIGURES = {
    "figure2": (_medians, _BY_MEDIAN),
    "figure3": (_medians, _BY_MEDIAN),
    "figure4": (
        functools.partial(
            _pointwise,
            x=lambda member: member.alignment["linearized_robustness"],
            y=lambda member: member.alignment["alignment"],
            labels=("linearized robustness ρ~", "alignment α"),
        ),
        "Pointwise alignment against linearized robustness, for the least robust, the middle and "
        "the most robust model by median linearized robustness.",
    ),
    "figure5": (
        functools.partial(
            _pointwise,
            x=lambda member: member.alignment["linearized_robustness"],
            y=lambda member: member.distance("carlini_wagner"),
            labels=("linearized robustness ρ~", "Carlini-Wagner distance"),
            diagonal=True,
        ),
        "Pointwise distance found by the Carlini-Wagner attack against linearized robustness; the "
        "dashed line is equality.",
    ),
    "figure6": (
        functools.partial(
            _summands,
            names={
                "linearized_robustness": "ρ~",
                "binarized_alignment": "α†",
                "bias_distance": "|β†| / ‖g†‖",
                "theorem2_binarized": "their sum, bound (14)",
            },
        ),
        "Medians of the summands of (18), the bound (14) of Theorem 2.",
    ),
    "figure7": (
        functools.partial(
            _summands,
            names={
                "linearized_robustness": "ρ~",
                "alignment": "α",
                "gap_distance": "‖x‖ · ‖g†/‖g†‖ − g/‖g‖‖",
                "bias_distance": "|β†| / ‖g†‖",
                "theorem2": "their sum, bound (15)",
            },
        ),
        "Medians of the summands of (19), the bound (15) of Theorem 2.",
    ),
    "figure8": (
        functools.partial(
            _summands,
            names={
                "linearized_robustness": "ρ~",
                "shifted_alignment": "α at the shifted input x̂",
                "shifted_gap_distance": "‖x̂‖ · ‖g†/‖g†‖ − ĝ/‖ĝ‖‖",
                "theorem3": "their sum, bound (16)",
            },
        ),
        "Medians of the summands of (20), the bound (16) of Theorem 3.",
    ),
    "figure9": (
        functools.partial(
            _pointwise,
            x=lambda member: member.alignment["margin"].abs(),
            y=lambda member: member.alignment["homogeneous_margin"].abs(),
            labels=("|Ψ†(x)|", "|⟨x, g†⟩|"),
            diagonal=True,
        ),
        "Pointwise homogeneous part of the margin against the margin; on the dashed line the "
        "biases' part is zero.",
    ),
    "figure10": (
        _maps,
        "Gradients of the predicted class's logit (blue negative, red positive, each map on its "
        "own scale) of the least and the most robust model.",
    ),
}
