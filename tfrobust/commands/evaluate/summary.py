"""A benchmark's summary in words, for the terminal and for the page."""

from __future__ import annotations

from typing import Any

__all__ = ["conditions", "rows", "text"]


def text(summary: dict[str, Any]) -> str:
    """For a terminal, one line per quantity."""
    lines = [f"{summary['examples']} examples; {conditions(summary)}", ""]
    table = rows(summary)
    widths = [max(len(row[column]) for row in table) for column in (0, 1)]
    for quantity, value, meaning in table:
        lines.append(f"{quantity:{widths[0]}}  {value:>{widths[1]}}  {meaning}".rstrip())
    if summary["uncertified"]:
        lines += ["", f"No certificates: {summary['uncertified']}"]
    return "\n".join(lines)


def conditions(summary: dict[str, Any]) -> str:
    """Norm, epsilon and attacks."""
    norm = summary["norm"]
    norm = "l-infinity" if norm == "inf" else f"l{norm:g}"
    attacks = ", ".join(summary["attacks"])
    return f"epsilon {summary['epsilon']:g} in {norm}, in the network's input units; {attacks}"


def rows(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Quantity, value and meaning of each."""
    percent, number = _percent, _number
    return [
        ("accuracy", percent(summary["accuracy"]), "of all examples"),
        (
            "robust accuracy, at most",
            percent(summary["robust_accuracy"]),
            "correct, and no attack within epsilon: an upper bound, as attacks may fail",
        ),
        (
            "robust accuracy, at least",
            percent(summary["certified_accuracy"]),
            "correct, and proven within epsilon",
        ),
        (
            "attack success rate",
            percent(summary["attack_success_rate"]),
            "of the correct examples, at any distance",
        ),
        (
            "median smallest perturbation",
            number(summary["median_distance"]),
            "of the correct examples; infinite where all attacks failed",
        ),
        (
            "median certified radius",
            number(summary["median_certified_radius"]),
            "of the correct examples; no smaller perturbation changes the class",
        ),
        (
            "median linearized robustness",
            number(summary["median_linearized_robustness"]),
            "of the correct examples, l2 (Etmann 2019, eq. (9))",
        ),
        (
            "median alignment",
            number(summary["median_alignment"]),
            "of the correct examples, l2 (Etmann 2019, eq. (7))",
        ),
        (
            "violations",
            str(summary["violations"]),
            "examples with an attack closer than the certified radius",
        ),
    ]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _number(value: float | str | None) -> str:
    return "-" if value is None else f"{float(value):.4g}"
