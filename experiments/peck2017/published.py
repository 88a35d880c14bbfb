"""What Peck 2017 prints: its tables cell by cell, and figures of its text.

Cells are kept as printed. Where the extracted text has lost or merged a cell, `GARBLED` says so:
rows 1 to 7 of Table 4.2 are one merged row, whose means, medians and deviations are safe, while
what varies in tests 5, 6 and 7 is uncertain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["DERIVATIVES", "GARBLED", "HIDDEN", "PROSE", "TABLES", "cells", "printed", "value"]

# tanh units of the hidden layers, section 4.3.2
HIDDEN = {"iris": (5,), "wine": (5, 3), "spambase": (7, 5, 3)}
# by table: columns, then rows as printed; 4.1 as formulas, whose values are `DERIVATIVES`
_COLUMNS = {
    "3.1": (
        "Classifiers",
        "Samples",
        "Dimensionality",
        "Classes",
        "Sample interval",
        "Parameter interval",
        "Mean",
        "Median",
        "Std",
    ),
    "4.1": ("sigm", "tanh", "softplus", "ReLU"),
    "4.2": (
        "Samples",
        "Dimensionality",
        "MLPs",
        "Layers",
        "Units",
        "Classes",
        "Sample interval",
        "Parameter interval",
        "Mean",
        "Median",
        "Std",
    ),
    "4.3": ("Mean", "Median", "Std", "Min", "Max"),
    "5.1": ("Normalized theoretical bound", "Normalized empirical bound", "Rate"),
    "5.2": ("Min", "Max", "Mean", "Median", "Std"),
    "5.3": ("Accuracy", "Min", "Max", "Mean", "Median", "Std", "Rate"),
}
_ROWS = {
    "3.1": {
        "1": ("100", "10", "2", "5", "[-1, 1]", "[-1, 1]", "0.9283", "0.8637", "0.5557648"),
        "2": ("100", "10", "20", "5", "[-1, 1]", "[-1, 1]", "3.783", "3.782", "0.5845007"),
        "3": ("100", "10", "2", "50", "[-1, 1]", "[-1, 1]", "1.015", "0.9544", "0.5454238"),
        "4": ("100", "10", "2", "5", "[-10, 10]", "[-1, 1]", "4.937", "4.498", "2.636395"),
        "5": ("100", "10", "2", "5", "[-1, 1]", "[-10, 10]", "1.061", "1.076", "0.5375943"),
    },
    "4.1": {
        "First-order": ("1/4", "1", "1", "1"),
        "Second-order": (
            "(5-3*sqrt(3))/(30*sqrt(3)-54)",
            "sinh(ln(2+sqrt(3))/2)/cosh(ln(2+sqrt(3))/2)^3",
            "1/4",
            "0",
        ),
    },
    "4.2": {
        "1": (
            "10",
            "2",
            "100",
            "3",
            "10",
            "5",
            "[-1, 1]",
            "[-1, 1]",
            "0.6322801",
            "0.5546744",
            "0.3358796",
        ),
        "2": (
            "10",
            "2",
            "100",
            "3",
            "10",
            "5",
            "[-100, 100]",
            "[-1, 1]",
            "0.6404704",
            "0.5849356",
            "0.4163827",
        ),
        "3": (
            "10",
            "2",
            "100",
            "3",
            "10",
            "5",
            "[-1, 1]",
            "[-100, 100]",
            "0.4335774",
            "0.3039111",
            "0.4211190",
        ),
        "4": (
            "10",
            "20",
            "100",
            "3",
            "10",
            "5",
            "[-1, 1]",
            "[-1, 1]",
            "1.1928828",
            "0.9919565",
            "0.9066600",
        ),
        "5": (
            "10",
            "2",
            "100",
            "3",
            "30",
            "5",
            "[-1, 1]",
            "[-1, 1]",
            "0.6533218",
            "0.6304373",
            "0.3057876",
        ),
        "6": (
            "10",
            "2",
            "100",
            "3",
            "10",
            "50",
            "[-1, 1]",
            "[-1, 1]",
            "0.6276122",
            "0.6120808",
            "0.2672927",
        ),
        "7": (
            "10",
            "2",
            "100",
            "",
            "20",
            "",
            "[-1, 1]",
            "[-1, 1]",
            "0.6630859",
            "0.6050979",
            "0.2996120",
        ),
        "8": (
            "100",
            "2",
            "10",
            "3",
            "10",
            "5",
            "[-10, 10]",
            "[-1, 1]",
            "0.6561273",
            "0.6170216",
            "0.3212896",
        ),
    },
    "4.3": {
        "Iris": ("0.715300", "0.557900", "0.4791929", "0.002236", "1.675000"),
        "Wine": ("1.26300", "1.13100", "0.775758", "0.01861", "3.23700"),
        "Spambase": ("3.4130", "3.0830", "1.499317", "0.1446", "7.5140"),
    },
    "5.1": {
        "LeNet-5": ("7.274294e-8", "0.9334476", "99.94%"),
        "CIFAR-NIN": ("1.579417e-17", "0.3129927", "93.04%"),
    },
    "5.2": {
        "LeNet-5": ("0.00065", "94.17", "26.72", "25.34", "13.27481"),
        "CIFAR-NIN": ("0.00121", "99.88000", "5.78300", "3.09300", "9.184525"),
    },
    "5.3": {
        "LeNet-LRN1": (
            "98.76%",
            "0.00756",
            "99.71930",
            "25.31045",
            "21.88714",
            "17.30748",
            "98.36%",
        ),
        "LeNet-LRN2": (
            "98.48%",
            "0.00011",
            "99.87615",
            "24.92861",
            "19.62794",
            "20.60854",
            "95.52%",
        ),
        "LeNet-LRN3": (
            "98.94%",
            "0.00869",
            "99.95050",
            "25.76302",
            "20.96658",
            "18.83517",
            "96.94%",
        ),
    },
}
# table, row, column: the cell as printed
TABLES: dict[str, dict[str, dict[str, str]]] = {
    table: {row: dict(zip(_COLUMNS[table], cells, strict=True)) for row, cells in rows.items()}
    for table, rows in _ROWS.items()
}

GARBLED = {
    ("4.2", "5", "Units"),
    ("4.2", "6", "Layers"),
    ("4.2", "6", "Units"),
    ("4.2", "6", "Classes"),
    ("4.2", "7", "Layers"),
    ("4.2", "7", "Units"),
    ("4.2", "7", "Classes"),
}

# Table 4.1's closed forms
DERIVATIVES = {
    ("First-order", "sigm"): 1 / 4,
    ("First-order", "tanh"): 1.0,
    ("First-order", "softplus"): 1.0,
    ("First-order", "ReLU"): 1.0,
    ("Second-order", "sigm"): (5 - 3 * np.sqrt(3)) / (30 * np.sqrt(3) - 54),
    ("Second-order", "tanh"): np.sinh(np.log(2 + np.sqrt(3)) / 2)
    / np.cosh(np.log(2 + np.sqrt(3)) / 2) ** 3,
    ("Second-order", "softplus"): 1 / 4,
    ("Second-order", "ReLU"): 0.0,
}

# figures of the text, by section and what they are
PROSE: dict[tuple[str, str], float | str] = {
    ("4.3.2", "Iris accuracy"): 1.0,
    ("4.3.2", "Wine accuracy"): 1.0,
    ("4.3.2", "Spambase accuracy"): 0.9326,
    ("4.4", "least Spambase accuracy"): 0.60,
    ("5.3.1", "LeNet-5 accuracy"): 0.99,
    ("5.3.1", "LeNet-5 images not changed"): "6 of 10,000, all of class 8",
    ("5.3.1", "LeNet-5 changed to 8, 3, 2"): "4,767, 1,921, 1,078",
    ("5.3.1", "LeNet-5 smallest norm"): 0.0182,
    ("5.3.1", "CIFAR-NIN accuracy"): 0.80,
    ("5.3.1", "CIFAR-NIN smallest norm"): 0.0671,
    ("5.4", "four kernels scaled by .9"): 1.5,
    ("5.4", "seven kernels scaled by .9"): 2.0,
}


def printed(table: str, row: str, column: str) -> str | None:
    """A cell as printed; None where there is none."""
    return TABLES[table].get(row, {}).get(column)


def value(table: str, row: str, column: str) -> float:
    """A cell as a number, a percentage as a share; NaN where it is none."""
    if table == "4.1":
        return float(DERIVATIVES.get((row, column), np.nan))
    text = printed(table, row, column) or ""
    try:
        return float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return float("nan")


def cells(table: str, ours: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Every printed cell of a table beside ours: one row per cell.

    Args:
        table: "3.1" for instance.
        ours: by row and column; a cell that is missing is empty.

    Returns:
        columns row, column, thesis, ours, ours / thesis, note.
    """
    rows = []
    for row, columns in TABLES[table].items():
        for column, text in columns.items():
            found = ours.get(row, {}).get(column, "")
            known = value(table, row, column)
            is_number = isinstance(found, int | float | np.number) and not isinstance(found, bool)
            ratio = float(found) / known if is_number and known else float("nan")
            garbled = (table, row, column) in GARBLED
            rows.append((row, column, text, found, ratio, "uncertain" if garbled else ""))
    names = ("row", "column", "thesis", "ours", "ours / thesis", "note")
    return pd.DataFrame(rows, columns=names)
