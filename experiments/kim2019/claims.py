"""What Kim 2019 claims, as functions of a run's results."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu, spearmanr

from experiments.common.claims import judged
from experiments.kim2019.adversaries import STANDARD, Adversary
from tfrobust.report import Claim

__all__ = ["changed", "gradients", "manifold", "tilting"]

# of tests
LEVEL = 0.05


def tilting(frame: pd.DataFrame, order: Sequence[str]) -> list[Claim]:
    """Section 2.2: training against stronger attacks removes the tilt.

    Args:
        frame: one row per network: adversary, seed, accuracy, accuracy on new points, tilt,
            distance.
        order: adversaries from standard training to the strongest.
    """
    source = "Section 2.2, Figure 3b"
    if frame.empty:
        return []
    training, new = frame["accuracy"].min(), frame["accuracy on new points"].min()
    return [
        judged(
            "All networks reach 100 % test accuracy",
            "Appendix A.2",
            bool(new == 1.0),
            f"least accuracy of {len(frame)} networks {new:.4%} on new points, {training:.4%} on "
            "those of training, which are the only ones that the released code has",
        ),
        _falls("The boundary's tilt falls with epsilon", source, frame, "tilt", order),
        _falls(
            "Adversarials' distance from the other class's long axis falls with epsilon",
            source,
            frame,
            "distance",
            order,
        ),
    ]


def _falls(
    statement: str, source: str, frame: pd.DataFrame, column: str, order: Sequence[str]
) -> Claim:
    """A column falls from each adversary to the next, for every seed.

    With a single seed the order is decided; with several, "not decided" where seeds differ.
    """
    table = frame.pivot(index="seed", columns="adversary", values=column)
    known = [name for name in order if name in table]
    if len(known) < 2:
        return judged(statement, source, None, "fewer than two networks")
    table = table[known].dropna()
    falls = (np.diff(table.to_numpy(), axis=1) < 0).all(axis=1)
    means = ", ".join(f"{name} {table[name].mean():.3g}" for name in known)
    figure = f"means {means}; falls for {falls.sum()} of {len(falls)} seeds"
    if 0 < falls.sum() < len(falls):
        return Claim(statement, "not decided", figure, source)
    return judged(statement, source, bool(falls.all()) if len(falls) else None, figure)


def manifold(networks: Mapping[str, pd.DataFrame], order: Sequence[str]) -> list[Claim]:
    """Section 2.1: training against attacks brings adversarials nearer to the image manifold.

    Args:
        networks: distances of adversarials by network; see `manifold`'s page.
        order: names of the adversaries of training.
    """
    known = [name for name in order if name in networks]
    trained = [name for name in known if name != STANDARD]
    if STANDARD not in known or not trained:
        return []
    pairs = [(STANDARD, name) for name in trained]
    claims = [
        _nearer(
            "Adversarials against trained networks lie nearer to the manifold",
            networks,
            pairs,
            judge="own",
            by="mean",
        ),
        _nearer(
            "The same with examples and projection of the released code: judged by the standard "
            "network, one draw",
            networks,
            pairs,
            judge="standard",
            by="sample",
        ),
    ]
    families: dict[str, list[str]] = {}
    for name in sorted(trained, key=lambda name: Adversary.of(name).epsilon):
        families.setdefault(Adversary.of(name).family, []).append(name)
    for family, names in families.items():
        if len(names) > 1:
            claims.append(
                _nearer(
                    f"Nearer with larger epsilon, {family}",
                    networks,
                    list(itertools.pairwise(names)),
                    judge="own",
                    by="mean",
                )
            )
    return [*claims, _projections_agree(networks, known)]


def changed(frame: pd.DataFrame, judge: str) -> pd.DataFrame:
    """Rows whose prediction the attack changed.

    Args:
        frame: of one network.
        judge: "own" prediction, as the text says, or that of the "standard" network, as in the
            released code, which keeps only examples that transfer to it.
    """
    before, after = ("before", "after") if judge == "own" else ("standard_before", "standard_after")
    return frame[frame[before] != frame[after]]


def _nearer(
    statement: str,
    networks: Mapping[str, pd.DataFrame],
    pairs: Sequence[tuple[str, str]],
    *,
    judge: str,
    by: str,
) -> Claim:
    """Distances are smaller against the second network of every pair: Mann-Whitney tests at 5 %.

    "Not held" where a test says larger; "not decided" where one says neither.
    """
    source, found, verdicts = "Section 2.1, Figure 1", [], []
    for first, second in pairs:
        a, b = (changed(networks[name], judge)[by].dropna() for name in (first, second))
        if min(len(a), len(b)) < 5:
            found.append(f"{first} -> {second}: only {len(a)} and {len(b)} examples")
            verdicts.append(None)
            continue
        smaller = mannwhitneyu(b, a, alternative="less").pvalue
        larger = mannwhitneyu(b, a, alternative="greater").pvalue
        verdicts.append(True if smaller < LEVEL else False if larger < LEVEL else None)
        found.append(
            f"{first} -> {second}: median {a.median():.3g} -> {b.median():.3g}, "
            f"p {min(smaller, larger):.1g}"
        )
    figure = "; ".join(found) + " (images of one network each, not networks)"
    if False in verdicts:
        return Claim(statement, "not held", figure, source)
    return Claim(statement, "not decided" if None in verdicts else "held", figure, source)


def _projections_agree(networks: Mapping[str, pd.DataFrame], names: Sequence[str]) -> Claim:
    """Footnote 2: the encoder and the search for the nearest point lead to the same results."""
    statement = "Encoder-decoder and search for the nearest point lead to the same order"
    source = "Section 2.1, footnote 2"
    pairs, medians = [], []
    for name in names:
        frame = changed(networks[name], "own").dropna(subset=["search"])
        if len(frame) >= 5:
            pairs.append(frame[["mean", "search"]])
            medians.append(frame[["mean", "search"]].median())
    if len(medians) < 3:
        return judged(statement, source, None, "fewer than three networks")
    table, images = pd.DataFrame(medians), pd.concat(pairs)
    order = spearmanr(table["mean"], table["search"]).statistic
    sides = np.sign(table - table.iloc[0])
    same = int((sides["mean"] == sides["search"]).sum()) - 1
    each = spearmanr(images["mean"], images["search"]).statistic
    figure = (
        f"Spearman {order:.3f} over medians of {len(table)} networks, {each:.3f} over "
        f"{len(images)} images; {same} of {len(table) - 1} trained networks on the same side of "
        "the standard one"
    )
    return judged(statement, source, bool(same == len(table) - 1 and order > 0), figure)


def gradients(frames: Mapping[str, pd.DataFrame]) -> list[Claim]:
    """Section 3.3 on Figure 6: l-infinity training gives sparse, l2 training smooth gradients.

    Args:
        frames: measures of gradients by network.
    """
    chosen: dict[str, str] = {}
    for name in sorted(frames, key=lambda name: Adversary.of(name).epsilon):
        norm = Adversary.of(name).norm
        if norm is not None:
            chosen[norm] = name  # the strongest
    if len(chosen) < 2:
        return []
    claims = []
    for statement, measure in (
        ("Gradients of linf-trained networks are sparser than those of l2-trained ones", "gini"),
        ("Gradients of l2-trained networks are smoother", "variation"),
    ):
        column = f"{measure}, direction"
        linf, l2 = (frames[chosen[norm]][column].dropna() for norm in ("linf", "l2"))
        if min(len(linf), len(l2)) < 5:
            claims.append(judged(statement, "Section 3.3, Figure 6", None, "too few gradients"))
            continue
        p = float(mannwhitneyu(linf, l2, alternative="greater").pvalue)
        figure = (
            f"median {measure} {linf.median():.3f} ({chosen['linf']}) against {l2.median():.3f} "
            f"({chosen['l2']}), one-sided Mann-Whitney p = {p:.2g} (images of one network each)"
        )
        claims.append(judged(statement, "Section 3.3, Figure 6", p < LEVEL, figure))
    return claims
