"""What Noack 2020 claims, as functions of results with their spread over seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from experiments.common.claims import judged
from experiments.noack2020.rows import Attack, Row
from tfrobust.report import Claim

__all__ = ["Comparison", "compared", "joined", "mean_of", "permutation", "table", "trade_off"]

LEVEL = 0.05


class Comparison:
    """Whether the values of one sample are larger than another's: a pooled one-sided t-test.

    Attributes:
        difference: of means.
        error: its standard error; NaN where both samples have one value.
        verdict: True, False, or None where the test at 5 % says neither.
    """

    def __init__(self, name: str, larger: Iterable[float], smaller: Iterable[float]):
        a, b = (np.asarray(list(values), np.float64) for values in (larger, smaller))
        self.name = name
        self.difference = float(a.mean() - b.mean()) if len(a) and len(b) else math.nan
        freedom = len(a) + len(b) - 2
        if freedom < 1 or not (len(a) and len(b)):
            self.error, self.verdict = math.nan, None
            return
        squares = ((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum()
        self.error = math.sqrt(squares / freedom * (1 / len(a) + 1 / len(b)))
        if self.error == 0:
            self.verdict = None if self.difference == 0 else self.difference > 0
            return
        p = stats.t.sf(self.difference / self.error, freedom)
        self.verdict = True if p < LEVEL else False if p > 1 - LEVEL else None

    def __str__(self) -> str:
        error = "" if math.isnan(self.error) else f" +- {self.error:.2f}"
        return f"{self.name} {self.difference:+.2f}{error}"


def joined(
    statement: str,
    source: str,
    comparisons: Sequence[Comparison | _Together],
    *,
    most: bool = False,
) -> Claim:
    """A claim of several comparisons: held if all hold, not held if one is decided against it.

    Args:
        statement, source: of the claim.
        comparisons: none: not tested.
        most: the claim is of most of them: held if more than half hold, not held if at least half
            are decided against it.
    """
    if not comparisons:
        return judged(statement, source, None, "the rows that it compares are missing")
    verdicts = [each.verdict for each in comparisons]
    held, against = verdicts.count(True), verdicts.count(False)
    figure = "; ".join(map(str, comparisons))
    if most:
        figure = f"{held} of {len(verdicts)} hold, {against} are decided against it: {figure}"
        positive, negative = 2 * held > len(verdicts), 2 * against >= len(verdicts)
    else:
        positive, negative = held == len(verdicts), against > 0
    verdict = "held" if positive else "not held" if negative else "not decided"
    return Claim(statement, verdict, figure, source)


@dataclasses.dataclass(frozen=True)
class _Together:
    """Comparisons of which all have to hold, counted as one."""

    parts: Sequence[Comparison]

    @property
    def verdict(self) -> bool | None:
        verdicts = [part.verdict for part in self.parts]
        return False if False in verdicts else None if None in verdicts else True

    def __str__(self) -> str:
        return ", ".join(map(str, self.parts))


def mean_of(attacks: pd.DataFrame, row: str, attack: str) -> list[float]:
    """Mean accuracies over restarts, per cent, one per seed."""
    chosen = attacks[(attacks["row"] == row) & (attacks["attack"] == attack)]
    return (100 * chosen["mean"]).tolist()


def compared(
    values: Callable[[str, str], list[float]],
    columns: Sequence[str],
    first: str,
    second: str,
) -> list[Comparison]:
    """Two rows, one comparison per column in which both have values."""
    pairs = [(column, values(first, column), values(second, column)) for column in columns]
    names = f"{Row.of(first).label} - {Row.of(second).label}"
    return [Comparison(f"{column}, {names}", a, b) for column, a, b in pairs if a and b]


def table(networks: pd.DataFrame, attacks: pd.DataFrame, source: str) -> list[Claim]:
    """Sections 4.5 and 4.6 on Tables 1 and 2 and Figure 4.

    Args:
        networks: one row per network; see `table.Results`.
        attacks: one row per network and attack, of one floor.
        source: "Section 4.5, Table 1".
    """
    if networks.empty or attacks.empty:
        return []
    columns = list(dict.fromkeys(attacks["attack"]))
    known = list(dict.fromkeys(networks["row"]))

    def under(row: str, attack: str) -> list[float]:
        return mean_of(attacks, row, attack)

    def of_networks(row: str, column: str) -> list[float]:
        scale = 100 if column == "accuracy" else 1
        return (scale * networks.loc[networks["row"] == row, column]).tolist()

    defences = [row for row in known if row != "standard"]
    lower = [c for row in defences for c in compared(of_networks, ["accuracy"], "standard", row)]
    norms = [c for row in defences for c in compared(of_networks, ["whole"], "standard", row)]
    own = [
        Comparison(Row.of(row).label, of_networks(row, "label"), of_networks(row, "others"))
        for row in known
    ]
    in_jr = compared(of_networks, ["label", "others"], "ir-r-smg", "jr")
    in_jr += compared(under, columns, "ir-r-smg", "jr") if in_jr else []
    return [
        joined("Every defence lowers standard accuracy", source, lower),
        _order(under, columns, known, source),
        *_overtakes(under, columns, known, source),
        joined(
            "IR (R, SmG) beats JR on every attack",
            source,
            compared(under, columns, "ir-r-smg", "jr"),
        ),
        *_smoothgrad(under, columns, source),
        joined(
            "Maps of robust networks beat those of standard ones",
            source,
            [
                c
                for method in ("simp", "smg")
                for c in compared(under, columns, f"ir-r-{method}", f"ir-nr-{method}")
            ],
        ),
        *(
            joined(
                f"Maps of standard networks compare unfavourably with {name}",
                source,
                [
                    c
                    for method in ("simp", "smg")
                    for c in compared(under, columns, other, f"ir-nr-{method}")
                ],
            )
            for name, other in (("JR", "jr"), ("permuted maps", "ir-r-smg-perm"))
        ),
        joined(
            "Complete permutation of the maps costs robustness",
            source,
            compared(under, columns, "ir-r-smg", "ir-r-smg-perm"),
        ),
        joined("JR has lower norms than IR (R, SmG), and is less robust", _FIGURE4, in_jr),
        joined("Defences lower ||J||", _FIGURE4, norms, most=True),
        joined("||J_c|| exceeds the norms of the other rows", _FIGURE4, own, most=True),
        *_other_teachers(under, columns, known),
    ]


_FIGURE4 = "Section 4.6, Figure 4"


def _order(
    values: Callable[[str, str], list[float]], columns: list[str], known: list[str], source: str
) -> Claim:
    """Adversarial training first, Interpretation Regularization second, for most attacks."""
    by_attack = []
    for column in columns:
        best = {
            kind: max(
                (row for row in known if Row.of(row).kind == kind and values(row, column)),
                key=lambda row: np.mean(values(row, column)),
                default=None,
            )
            for kind in ("at", "ir")
        }
        if None in best.values():
            continue
        parts = compared(values, [column], best["at"], best["ir"])
        for other in ("jr", "standard"):
            parts += compared(values, [column], best["ir"], other)
        by_attack.append(_Together(parts))
    return joined(
        "Adversarial training is most robust, IR second, for most attacks",
        source,
        by_attack,
        most=True,
    )


def _overtakes(
    values: Callable[[str, str], list[float]], columns: list[str], known: list[str], source: str
) -> list[Claim]:
    """Where perturbations are largest on MNIST, IR overtakes adversarial training."""
    pairs = {"linf-0.25": "at-1.5", "linf-0.3": "at-2.5"}
    found = [
        comparison
        for column, row in pairs.items()
        if column in columns and row in known
        for comparison in compared(values, [column], "ir-r-smg", row)
    ]
    if not any(column in columns for column in pairs):
        return []
    statement = (
        "IR (R, SmG) overtakes its teacher at linf .25 and all adversarial training at linf .3"
    )
    return [joined(statement, source, found)]


def _smoothgrad(
    values: Callable[[str, str], list[float]], columns: list[str], source: str
) -> list[Claim]:
    by_column = {
        column: [
            c
            for teacher in ("r", "nr")
            for c in compared(values, [column], f"ir-{teacher}-smg", f"ir-{teacher}-simp")
        ]
        for column in columns
    }
    claims = [
        joined(
            "SmoothGrad's maps beat simple gradients, of robust and standard networks",
            source,
            [c for each in by_column.values() for c in each],
            most=True,
        )
    ]
    gains: dict[float, list[float]] = {2: [], math.inf: []}
    for column, each in by_column.items():
        gains[Attack.of(column).norm] += [c.difference for c in each]
    if gains[2] and gains[math.inf]:
        claims.append(
            joined(
                "The gain of SmoothGrad is largest under cross-norm (linf) attacks",
                source,
                [Comparison("mean gain, linf - l2", gains[math.inf], gains[2])],
            )
        )
    return claims


def _other_teachers(
    values: Callable[[str, str], list[float]], columns: list[str], known: list[str]
) -> list[Claim]:
    """Section 4.1's preliminary finding, where such rows were run."""
    statement = "Maps of l2-trained networks beat those of linf-trained ones"
    others = [row for row in known if row.startswith("ir-at-linf-")]
    comparisons = [
        c for row in others for c in compared(values, columns, f"ir-r-{Row.of(row).method}", row)
    ]
    return [joined(statement, "Section 4.1", comparisons)] if others else []


def permutation(frame: pd.DataFrame) -> list[Claim]:
    """Section 4.6 on Figure 3: more permutation, less robust, less aligned, smaller gradients.

    Args:
        frame: one row per network: probability, accuracy, attacked, label, cosine.
    """
    source = "Section 4.6, Figure 3"
    if frame.empty or frame["probability"].nunique() < 3:
        return []
    claims = []
    for column, words in (
        ("attacked", "accuracy under attack"),
        ("cosine", "the cosine with the target maps"),
        ("label", "||J_c||"),
        ("accuracy", "standard accuracy"),
    ):
        line = stats.linregress(frame["probability"], frame[column])
        p = stats.t.cdf(line.slope / line.stderr, len(frame) - 2) if line.stderr else 0.5
        verdict = "held" if p < LEVEL else "not held" if p > 1 - LEVEL else "not decided"
        figure = (
            f"slope {line.slope:.3g} +- {line.stderr:.2g}, Pearson {line.rvalue:.2f} over "
            f"{len(frame)} networks"
        )
        claims.append(Claim(f"More permutation lowers {words}", verdict, figure, source))
    by = {claim.statement.removeprefix("More permutation lowers "): claim for claim in claims}
    robust, norm = by["accuracy under attack"], by["||J_c||"]
    both = robust.verdict == "held" and norm.verdict == "held"
    neither = "not held" in (robust.verdict, norm.verdict)
    claims.append(
        Claim(
            "Lower norms alone do not explain robustness: both fall with permutation",
            "held" if both else "not held" if neither else "not decided",
            f"accuracy under attack: {robust.figure}; ||J_c||: {norm.figure}",
            source,
        )
    )
    return claims


def trade_off(frame: pd.DataFrame) -> list[Claim]:
    """At equal standard accuracy, is IR more robust than JR? The paper leaves it open.

    Args:
        frame: one row per network: kind ("ir" or "jr"), accuracy, attacked, in per cent.

    JR's robustness at the accuracy of an IR network is interpolated between JR networks, and IR
    networks outside their range are left out. Sign test over IR networks.
    """
    statement = "At equal standard accuracy IR is more robust than JR"
    source = "Not in the paper"
    if frame.empty or not {"ir", "jr"} <= set(frame["kind"]):
        return []
    jr = frame[frame["kind"] == "jr"].groupby("accuracy", as_index=False)["attacked"].mean()
    ir = frame[frame["kind"] == "ir"]
    inside = ir[ir["accuracy"].between(jr["accuracy"].min(), jr["accuracy"].max())]
    if inside.empty or len(jr) < 2:
        figure = "no IR network has a standard accuracy between those of two JR networks"
        return [judged(statement, source, None, figure)]
    jr = jr.sort_values("accuracy")
    gains = inside["attacked"] - np.interp(inside["accuracy"], jr["accuracy"], jr["attacked"])
    wins, count = int((gains > 0).sum()), len(gains)
    p = stats.binomtest(wins, count).pvalue
    figure = (
        f"{wins} of {count} IR networks above JR's line, mean gain {gains.mean():+.2f} points, "
        f"sign test p = {p:.2g}"
    )
    if p >= LEVEL:
        return [Claim(statement, "not decided", figure, source)]
    return [judged(statement, source, wins > count / 2, figure)]
