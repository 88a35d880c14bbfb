"""What Etmann 2019 claims, as functions of a cohort's results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import pearsonr, permutation_test, rankdata, zscore

from experiments.common.claims import judged
from experiments.etmann2019.results import ATTACK_NAMES, Member
from tfrobust.report import Claim

FEWEST_MODELS = 4
# for a slope in either half; the paper has seven models on ImageNet
FEWEST_FOR_SLOPES = 6
# float32 sums of a few hundred terms
ROUNDING = 1e-4


def judge(members: Sequence[Member], *, saturates: bool) -> tuple[Claim, ...]:
    """Every claim of one half; degenerate members are left out of those on medians.

    Args:
        members: a finished cohort.
        saturates: whether the paper says that alignment saturates on these data (MNIST), or that
            it keeps growing (ImageNet).
    """
    sound = [member for member in members if not member.degenerate]
    figure = "Figure 3" if saturates else "Figure 2"
    return (
        *(
            alignment_grows(sound, name, figure)
            for name in ("linearized_robustness", *ATTACK_NAMES)
        ),
        alignment_saturates(sound) if saturates else alignment_keeps_growing(sound),
        linearization_predicts_attacks(sound),
        pointwise_connection(sound),
        bound_holds(members, "theorem2_binarized", "Theorem 2, eq. (14)"),
        bound_holds(members, "theorem2", "Theorem 2, eq. (15)"),
        bound_holds(members, "theorem3", "Theorem 3, eq. (16)"),
    )


def attacks_of(members: Sequence[Member]) -> tuple[str, ...]:
    """Attacks that every member went through."""
    return tuple(
        name for name in ATTACK_NAMES if all(name in member.distances for member in members)
    )


def median_robustness(member: Member, name: str) -> float:
    """Median of a robustness estimate: `linearized_robustness` or an attack's distance.

    NaN where the attack found nothing, or was not made.
    """
    value = member.summary.get(f"median_{name}")
    return float("nan") if value is None else value


def estimate_name(name: str) -> str:
    """A robustness estimate's name in a sentence."""
    return ATTACK_NAMES.get(name, "linearized robustness")


def alignment_grows(members: Sequence[Member], name: str, figure: str = "Figure 3") -> Claim:
    """Figures 2 and 3: models that are more robust at the median are better aligned there."""
    statement = f"Median alignment grows with median robustness ({estimate_name(name)})"
    source = f"section 5, {figure}"
    robustness = np.array([median_robustness(member, name) for member in members])
    alignment = np.array([member.summary["median_alignment"] for member in members])
    keep = np.isfinite(robustness) & np.isfinite(alignment)
    if keep.sum() < FEWEST_MODELS:
        return judged(statement, source, None, f"only {keep.sum()} usable models")
    ranks = zscore(rankdata(alignment[keep]))
    # Spearman's coefficient under every order of up to 8 models, a sample of orders beyond
    result = permutation_test(
        (zscore(rankdata(robustness[keep])),),
        lambda order, axis: np.mean(order * ranks, axis=axis),
        permutation_type="pairings",
        vectorized=True,
        alternative="greater",
        n_resamples=41_000,
        rng=np.random.default_rng(0),
    )
    held = result.statistic > 0 and result.pvalue < 0.05
    return judged(
        statement,
        source,
        held,
        f"Spearman {result.statistic:.2f} over {keep.sum()} models, "
        f"one-sided permutation p = {result.pvalue:.2g} (held if under .05)",
    )


def alignment_saturates(members: Sequence[Member]) -> Claim:
    """On MNIST the growth of alignment levels off for the most robust models."""
    statement = "On MNIST alignment saturates: it stops growing for the most robust models"
    source = "section 5, Figure 3 (right)"
    slopes, figure = _slopes(members, fewest=2 * FEWEST_MODELS)
    if slopes is None:
        return judged(statement, source, None, figure)
    lower, upper = slopes
    held = lower > 0 and upper < lower / 2
    return judged(statement, source, held, f"{figure} (held if under half)")


def alignment_keeps_growing(members: Sequence[Member]) -> Claim:
    """On ImageNet alignment grows with robustness over the whole range, without levelling off."""
    statement = (
        "On ImageNet alignment keeps growing with robustness over the whole range: it does not "
        "level off"
    )
    source = "section 5, Figure 2"
    slopes, figure = _slopes(members, fewest=FEWEST_FOR_SLOPES)
    if slopes is None:
        return judged(statement, source, None, figure)
    lower, upper = slopes
    held = lower > 0 and upper >= lower / 2
    return judged(statement, source, held, f"{figure} (held if at least half)")


def _slopes(members: Sequence[Member], *, fewest: int) -> tuple[tuple[float, float] | None, str]:
    """Growth of alignment in the less and in the more robust half of the models, and in words."""
    points = (
        (member.summary["median_linearized_robustness"], member.summary["median_alignment"])
        for member in members
    )
    points = sorted(point for point in points if np.isfinite(point).all())
    if len(points) < fewest:
        return None, f"only {len(points)} usable models"
    robustness, alignment = np.array(points).T
    half = len(points) // 2
    lower = np.polyfit(robustness[:half], alignment[:half], 1)[0]
    upper = np.polyfit(robustness[half:], alignment[half:], 1)[0]
    return (lower, upper), (
        f"slope of median alignment over median linearized robustness: {lower:.2f} in the less "
        f"robust half of the models, {upper:.2f} in the more robust half"
    )


def linearization_predicts_attacks(members: Sequence[Member]) -> Claim:
    """Figure 5: rho~ is close to the distance that the strongest attack finds, image by image."""
    return _within_each(
        "Linearized robustness predicts the Carlini-Wagner distance image by image",
        "section 5, Figure 5",
        [
            correlation(
                member.alignment["linearized_robustness"], member.distance("carlini_wagner")
            )
            for member in members
            if "carlini_wagner" in member.distances
        ],
        threshold=0.5,
    )


def pointwise_connection(members: Sequence[Member]) -> Claim:
    """Figure 4: within a model, images that are more robust are better aligned."""
    return _within_each(
        "Within a model, images with larger linearized robustness are better aligned",
        "section 5, Figure 4",
        [
            correlation(member.alignment["linearized_robustness"], member.alignment["alignment"])
            for member in members
        ],
        threshold=0.0,
    )


def _within_each(
    statement: str, source: str, correlations: Sequence[float], *, threshold: float
) -> Claim:
    values = [value for value in correlations if np.isfinite(value)]
    if not values:
        return judged(statement, source, None, "no usable model")
    return judged(
        statement,
        source,
        min(values) > threshold,
        f"Pearson correlation within each model: {min(values):.2f} to {max(values):.2f}, "
        f"median {np.median(values):.2f} (held if all exceed {threshold:g})",
    )


def bound_holds(members: Sequence[Member], name: str, source: str) -> Claim:
    """A theorem's bound on rho~ at every image of every model."""
    violations = images = 0
    closest = np.inf
    for member in members:
        robustness = member.alignment["linearized_robustness"].to_numpy(float)
        bound = member.alignment[name].to_numpy(float)
        keep = np.isfinite(robustness) & np.isfinite(bound)
        violations += int((robustness[keep] > bound[keep] * (1 + ROUNDING)).sum())
        images += int(keep.sum())
        with np.errstate(divide="ignore"):
            closest = min(closest, np.min(bound[keep] / robustness[keep], initial=np.inf))
    statement = f"{source}: the right-hand side bounds linearized robustness"
    if not images:
        return judged(statement, source, None, "no image")
    return judged(
        statement,
        source,
        violations == 0,
        f"{violations} violations in {images} images; closest ratio {closest:.4f}",
    )


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson correlation over the pairs that are finite; NaN under three pairs."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    keep = np.isfinite(x) & np.isfinite(y)
    if keep.sum() < 3 or np.ptp(x[keep]) == 0 or np.ptp(y[keep]) == 0:
        return float("nan")
    return float(pearsonr(x[keep], y[keep]).statistic)
