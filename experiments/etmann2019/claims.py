"""What Etmann 2019 claims, as functions of a cohort's results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import pearsonr, permutation_test, rankdata, zscore

from experiments.etmann2019.cohort import ATTACK_NAMES, Member
from tfrobust.report import Claim

FEWEST_MODELS = 4
# float32 sums of a few hundred terms
ROUNDING = 1e-4


def judge(members: Sequence[Member]) -> tuple[Claim, ...]:
    """Every claim of the MNIST half; degenerate members are left out of those on medians."""
    sound = [member for member in members if not member.degenerate]
    return (
        *(alignment_grows(sound, name) for name in ("linearized_robustness", *ATTACK_NAMES)),
        alignment_saturates(sound),
        linearization_predicts_attacks(sound),
        pointwise_connection(sound),
        bound_holds(members, "theorem2_binarized", "Theorem 2, eq. (14)"),
        bound_holds(members, "theorem2", "Theorem 2, eq. (15)"),
        bound_holds(members, "theorem3", "Theorem 3, eq. (16)"),
    )


def median_robustness(member: Member, name: str) -> float:
    """Median of a robustness estimate: `linearized_robustness` or an attack's distance."""
    value = member.summary[f"median_{name}"]
    return float("nan") if value is None else value


def words(name: str) -> str:
    """A robustness estimate in words."""
    return ATTACK_NAMES.get(name, "linearized robustness")


def alignment_grows(members: Sequence[Member], name: str) -> Claim:
    """Figure 3: models that are more robust at the median are better aligned at the median."""
    statement = f"Median alignment grows with median robustness ({words(name)})"
    source = "section 5, Figure 3"
    robustness = np.array([median_robustness(member, name) for member in members])
    alignment = np.array([member.summary["median_alignment"] for member in members])
    keep = np.isfinite(robustness) & np.isfinite(alignment)
    if keep.sum() < FEWEST_MODELS:
        return Claim(statement, "not tested", f"only {keep.sum()} models", source)
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
    return Claim(
        statement,
        "held" if held else "not held",
        f"Spearman {result.statistic:.2f} over {keep.sum()} models, "
        f"one-sided permutation p = {result.pvalue:.2g} (held if under .05)",
        source,
    )


def alignment_saturates(members: Sequence[Member]) -> Claim:
    """On MNIST the growth of alignment levels off for the most robust models."""
    statement = "On MNIST alignment saturates: it stops growing for the most robust models"
    source = "section 5, Figure 3 (right)"
    points = (
        (member.summary["median_linearized_robustness"], member.summary["median_alignment"])
        for member in members
    )
    points = sorted(point for point in points if np.isfinite(point).all())
    if len(points) < 2 * FEWEST_MODELS:
        return Claim(statement, "not tested", f"only {len(points)} models", source)
    robustness, alignment = np.array(points).T
    half = len(points) // 2
    lower = np.polyfit(robustness[:half], alignment[:half], 1)[0]
    upper = np.polyfit(robustness[half:], alignment[half:], 1)[0]
    return Claim(
        statement,
        "held" if lower > 0 and upper < lower / 2 else "not held",
        f"slope of median alignment over median linearized robustness: {lower:.2f} in the less "
        f"robust half of the models, {upper:.2f} in the more robust half (held if under half)",
        source,
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
        return Claim(statement, "not tested", "no model", source)
    return Claim(
        statement,
        "held" if min(values) > threshold else "not held",
        f"Pearson correlation within each model: {min(values):.2f} to {max(values):.2f}, "
        f"median {np.median(values):.2f} (held if all exceed {threshold:g})",
        source,
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
        return Claim(statement, "not tested", "no image", source)
    return Claim(
        statement,
        "held" if violations == 0 else "not held",
        f"{violations} violations in {images} images; closest ratio {closest:.4f}",
        source,
    )


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson correlation over the pairs that are finite; NaN under three pairs."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    keep = np.isfinite(x) & np.isfinite(y)
    if keep.sum() < 3 or np.ptp(x[keep]) == 0 or np.ptp(y[keep]) == 0:
        return float("nan")
    return float(pearsonr(x[keep], y[keep]).statistic)
