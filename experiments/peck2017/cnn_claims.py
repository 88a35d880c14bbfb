"""What Peck 2017 claims of convolutional networks (sections 2.7, 5.3.1, 5.4 and 5.4.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.common.claims import judged
from experiments.peck2017 import claims, published
from experiments.peck2017.comparison import FGS
from tfrobust.report import Claim

__all__ = ["changes", "iterated", "levels", "normalisation", "scaling"]

# of probabilities that are compared: a difference of shares is decided beyond two standard errors
_ERRORS = 2.0


def changes(frame: pd.DataFrame, network: str, names: Sequence[str]) -> list[Claim]:
    """Section 5.3.1: which classes images leave, and what they become; of one network."""
    source, failed = "Section 5.3.1, Figure 5.10", frame[frame[FGS].isna()]
    known = published.value("5.1", network, "Rate")
    found = [
        judged(
            f"FGS changes {known:.2%} of the images of {network}",
            "Table 5.1",
            None if not len(frame) else bool(abs(frame[FGS].notna().mean() - known) < 0.01),
            f"{frame[FGS].notna().mean():.2%} of {len(frame)} (held within a point)",
        )
    ]
    becomes = frame.loc[frame[FGS].notna(), "becomes"].value_counts()
    order = [names[int(index)] for index in becomes.index]
    shown = ", ".join(f"{name} {count}" for name, count in zip(order, becomes, strict=True))
    if network == "LeNet-5":
        classes = [names[int(index)] for index in failed["predicted"]]
        found += [
            judged(
                "All images that FGS does not change belong to class 8",
                source,
                set(classes) == {"8"} if classes else None,
                f"{len(classes)} images: {', '.join(sorted(classes)) or 'none'}; the thesis's 6",
            ),
            judged(
                "Most changed images become 8, then 3, then 2",
                source,
                order[:3] == ["8", "3", "2"] if order else None,
                f"{shown}; the thesis's 8 4,767, 3 1,921, 2 1,078",
            ),
        ]
    else:
        pairs = frame[frame[FGS].notna()].groupby(["predicted", "becomes"]).size()
        pairs = pairs.sort_values(ascending=False)
        top = [(names[int(a)], names[int(b)]) for a, b in pairs.index[:3]]
        expected = [("ship", "airplane"), ("automobile", "truck"), ("dog", "cat")]
        words = ", ".join(
            f"{a} -> {b} {count}" for (a, b), count in zip(top, pairs[:3], strict=True)
        )
        found.append(
            judged(
                "The most common changes are ship to airplane, automobile to truck, dog to class 3",
                source,
                top == expected if len(top) == 3 else None,
                words or "no success",
            )
        )
    return found


def levels(frames: Mapping[str, pd.DataFrame], scales: Mapping[str, float]) -> list[Claim]:
    """Section 5.3.1: how far apart bounds and perturbations are, and MNIST against CIFAR-10."""
    source, found = "Section 5.3.1", []
    for network, frame in frames.items():
        distance = frame[FGS].dropna()
        if not len(distance):
            continue
        mean, least = (float(each * scales[network]) for each in (distance.mean(), distance.min()))
        bound = float(frame["printed"].mean() * scales[network])
        found.append(
            judged(
                f"{network}: the smallest perturbation is much closer to the theoretical bound "
                "than "
                "the mean",
                source,
                bool(least < mean / 10),
                f"smallest {least:.3g}, mean {mean:.3g}, mean bound {bound:.3g} in units of [0, "
                "255] "
                f"(held under a tenth of the mean); the thesis's smallest "
                f"{published.PROSE['5.3.1', f'{network} smallest norm']}",
            )
        )
    if len(frames) == 2:
        lenet, nin = (frame["epsilon"] * scales[name] for name, frame in frames.items())
        found.append(
            claims.is_larger(
                "Perturbations on MNIST are much larger than on CIFAR-10", nin, lenet, source
            )
        )
    return found


def iterated(arrays: Mapping[str, np.ndarray], network: str) -> list[Claim]:
    """Section 2.7: steps after the first are small, and labels alternate between two classes."""
    steps, labels = arrays["step_distance"], arrays["labels"]
    whole = np.isfinite(steps).all(axis=1)
    if not whole.any():
        return []
    steps, labels = steps[whole], labels[whole]
    later = np.median(steps[:, 1:].max(axis=1) / steps[:, 0])
    alternate = (labels[:, 2:] == labels[:, :-2]).all(axis=1)
    return [
        judged(
            f"{network}: the norm of perturbations diminishes dramatically after the first",
            "Section 2.7",
            bool(later < 0.1),
            f"largest later step over the first, median of {len(steps)} images: {later:.3g} (held "
            "under .1)",
        ),
        judged(
            f"{network}: labels alternate between two classes",
            "Section 2.7",
            bool(alternate.mean() >= 0.9),
            f"for {alternate.sum()} of {len(labels)} images (held from 90 %)",
        ),
    ]


def scaling(ratios: pd.DataFrame) -> list[Claim]:
    """Section 5.4: scaling kernels by .9 raises the bound by .9^-n; columns kernels, ratio."""
    found = []
    for kernels, words in ((4, "four"), (7, "seven")):
        thesis = float(published.PROSE["5.4", f"{words} kernels scaled by .9"])
        ratio = 0.9**-kernels
        found.append(
            judged(
                f"Scaling {words} kernels by .9 gives a factor of about {thesis:g}",
                "Figure 5.12",
                bool(abs(ratio / thesis - 1) < 0.06),
                f"{ratio:.4g} by the closed form (held within 6 %)",
            )
        )
    if len(ratios):
        off = float((ratios["ratio"] * ratios["scale"] ** ratios["kernels"] - 1).abs().max())
        found.append(
            judged(
                "The printed bound of LeNet-5's convolutions and pools grows as 1 / (a_1 ... a_n)",
                "Section 5.4",
                off < 1e-3,
                f"largest relative difference {off:.2g} over {len(ratios)} networks (held under "
                ".001)",
            )
        )
    return found


def normalisation(networks: pd.DataFrame, frames: Mapping[str, pd.DataFrame]) -> list[Claim]:
    """Section 5.4.1.

    Args:
        networks: one row per network: variant, accuracy, rate, least epsilon.
        frames: the examples by variant, of all seeds.
    """
    source, plain = "Section 5.4.1, Table 5.3", "lenet5"
    variants = [name for name in frames if "lrn" in name]
    if plain not in frames or not variants:
        return []
    found = []
    for name in variants:
        title = name.replace("lenet5_lrn", "LeNet-LRN")
        found += [
            _lower_rate(
                f"{title} has a lower adversarial error rate than LeNet-5",
                source,
                frames[plain][FGS].notna(),
                frames[name][FGS].notna(),
            ),
            _least(title, source, networks, name, expected=not name.endswith("lrn2")),
            claims.is_larger(
                f"{title} raises the robustness: epsilon",
                frames[plain]["epsilon"],
                frames[name]["epsilon"],
                source,
            ),
        ]
    means = networks.groupby("variant")["accuracy"].mean()
    worst = float(min(means[name] for name in variants) - means[plain])
    found.append(
        judged(
            "The accuracy does not suffer much",
            source,
            worst > -0.01,
            f"largest change of the mean {100 * worst:+.2f} points (held above -1)",
        )
    )
    return found


def _lower_rate(statement: str, source: str, plain: pd.Series, other: pd.Series) -> Claim:
    first, second = float(plain.mean()), float(other.mean())
    error = np.sqrt(first * (1 - first) / len(plain) + second * (1 - second) / len(other))
    figure = f"{first:.2%} -> {second:.2%}, standard error of the difference {error:.2%}"
    if abs(second - first) <= _ERRORS * error or first == second:
        return Claim(statement, "not decided", figure, source)
    return judged(statement, source, second < first, figure)


def _least(
    title: str, source: str, networks: pd.DataFrame, variant: str, *, expected: bool
) -> Claim:
    """The smallest epsilon, of one image per network: decided where all seeds agree."""
    least: dict[str, Any] = {
        name: networks.loc[networks["variant"] == name, "least epsilon"].to_numpy()
        for name in ("lenet5", variant)
    }
    words = "a larger" if expected else "no larger"
    statement = f"{title} has {words} smallest epsilon than LeNet-5"
    one, two = least["lenet5"], least[variant]
    if not len(one) or not len(two) or np.isnan([*one, *two]).any():
        return judged(statement, source, None, "no success")
    figure = (
        f"{', '.join(f'{e:.4g}' for e in one)} -> {', '.join(f'{e:.4g}' for e in two)}, one image "
        "of each network"
    )
    if two.min() > one.max() or two.max() < one.min():
        return judged(statement, source, bool((two.min() > one.max()) == expected), figure)
    return Claim(statement, "not decided", figure, source)
