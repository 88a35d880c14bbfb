"""A benchmark's summary as text, for the terminal and the page."""

from __future__ import annotations

from typing import Any

__all__ = ["conditions", "rows", "text"]


def text(summary: dict[str, Any]) -> str:
    """One line per quantity, for a terminal."""
    lines = [f"{summary['examples']} examples; {conditions(summary)}", ""]
    table = rows(summary)
    widths = [max(len(row[column]) for row in table) for column in (0, 1)]
    for quantity, value, meaning in table:
        lines.append(f"{quantity:{widths[0]}}  {value:>{widths[1]}}  {meaning}".rstrip())
    if summary["uncertified"]:
        lines += ["", f"No certificates: {summary['uncertified']}"]
    return "\n".join(lines)


def conditions(summary: dict[str, Any]) -> str:
    """Epsilon, norm and attacks in one line."""
    norm = summary["norm"]
    norm = "l-infinity" if norm == "inf" else f"l{norm:g}"
    attacks = ", ".join(summary["attacks"])
    return f"epsilon {summary['epsilon']:g} in {norm}, in the network's input units; {attacks}"


def rows(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Quantity, value and meaning of each."""
    return [
        (quantity, _FORMATS[key.split("_")[0]](summary[key]), meaning)
        for key, (quantity, meaning) in _ROWS.items()
    ]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _number(value: float | str | None) -> str:
    return "-" if value is None else f"{float(value):.4g}"


_CORRECT = "of the correct examples"
# by the summary's keys: quantity and meaning
_ROWS = {
    "accuracy": ("accuracy", "of all examples"),
    "robust_accuracy": ("robust accuracy, at most", "correct, and no attack found within epsilon"),
    "certified_accuracy": ("robust accuracy, at least", "correct, and proven within epsilon"),
    "attack_success_rate": ("attack success rate", f"{_CORRECT}, at any distance"),
    "median_distance": ("median smallest perturbation", f"{_CORRECT}; failed attacks are infinite"),
    "median_certified_radius": ("median certified radius", f"{_CORRECT}; none smaller succeeds"),
    "median_linearized_robustness": ("median linearized robustness", f"{_CORRECT}, l2, eq. (9)"),
    "median_alignment": ("median alignment", f"{_CORRECT}, l2 (Etmann 2019, eq. (7))"),
    "violations": ("violations", "examples with an attack closer than the certified radius"),
}
# by the first word of the key
_FORMATS = {"median": _number, "violations": str}
_FORMATS |= dict.fromkeys(("accuracy", "robust", "certified", "attack"), _percent)
