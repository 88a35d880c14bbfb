"""Numbers published in Noack 2020, keyed by table, row and column; per cent.

Cells of Tables 1 and 2 are mean accuracies over three random restarts of the attack, each of which
attacks every test image. Figures 3 and 4 are plots without numbers; `TEXT` has what the text says
of them.
"""

__all__ = ["AGAINST_ITS_TABLES", "TABLE1", "TABLE2", "TEXT"]

_MNIST = ("standard", "l2-1.5", "linf-0.1", "linf-0.2", "linf-0.25", "linf-0.3")
_CIFAR = ("standard", "l2-80/255", "l2-320/255", "linf-4/255", "linf-8/255")


def _cells(columns: tuple[str, ...], values: str) -> dict[str, float]:
    return dict(zip(columns, map(float, values.split()), strict=True))


# by the names of rows that `experiments.noack2020.rows` has
TABLE1 = {
    "standard": _cells(_MNIST, "99.50 78.41 78.91 9.32 3.57 1.71"),
    "at-1.5": _cells(_MNIST, "99.39 89.88 96.60 73.01 32.07 5.46"),
    "at-2.5": _cells(_MNIST, "98.29 88.06 94.23 76.39 49.98 10.94"),
    "jr": _cells(_MNIST, "98.12 82.64 91.15 60.58 29.41 6.54"),
    "ir-r-smg-perm": _cells(_MNIST, "97.28 78.75 88.11 54.36 26.26 7.58"),
    "ir-nr-simp": _cells(_MNIST, "98.05 79.57 87.82 50.20 23.71 2.29"),
    "ir-nr-smg": _cells(_MNIST, "98.04 81.22 90.39 55.98 28.70 4.98"),
    "ir-r-simp": _cells(_MNIST, "98.12 84.24 91.60 64.03 37.90 10.86"),
    "ir-r-smg": _cells(_MNIST, "98.18 85.25 92.35 66.92 41.22 11.52"),
}

# by group, the radius of the teacher; the standard network belongs to none
TABLE2 = {
    "": {"standard": _cells(_CIFAR, "95.00 11.84 0.00 0.74 0.01")},
    "320/255": {
        "at-320/255": _cells(_CIFAR, "76.04 67.57 58.29 59.05 38.40"),
        "jr": _cells(_CIFAR, "78.93 61.41 8.35 42.22 11.23"),
        "ir-r-simp": _cells(_CIFAR, "78.68 63.74 12.56 47.18 16.28"),
        "ir-r-smg": _cells(_CIFAR, "78.97 62.64 12.42 48.17 18.78"),
    },
    "80/255": {
        "at-80/255": _cells(_CIFAR, "90.34 75.14 20.44 59.43 25.37"),
        "jr": _cells(_CIFAR, "85.41 58.96 3.32 32.27 2.51"),
        "ir-nr-simp": _cells(_CIFAR, "81.43 45.04 0.18 16.69 0.40"),
        "ir-nr-smg": _cells(_CIFAR, "84.39 53.84 0.56 28.00 1.84"),
        "ir-r-smg-perm": _cells(_CIFAR, "85.70 58.20 1.91 29.19 1.87"),
        "ir-r-simp": _cells(_CIFAR, "85.39 62.45 5.35 39.93 8.20"),
        "ir-r-smg": _cells(_CIFAR, "85.69 63.71 7.98 46.64 14.25"),
    },
}

# sections 4.3 and 4.5
TEXT = {
    "MNIST, IR minus JR": (1.20, 11.81),
    "CIFAR-10, IR minus JR": (2.34, 14.37),
    "CIFAR-10, teacher 80/255, SmG minus simp at linf 4/255 and 8/255": (6.67, 6.05),
    "CIFAR-10, teacher 320/255, simp minus SmG, l2, at most": (1.10,),
    "permutation, standard accuracy at .1 and at 1": (98.13, 97.37),
    "permutation, Pearson correlation with standard accuracy": (-0.93,),
    "WRN-28-10, millions of parameters": (36.5,),
}

# what the text says against the paper's own tables
AGAINST_ITS_TABLES = {
    "CIFAR-10, smallest IR minus JR 2.34": "Table 2: the best IR has 63.74 - 61.41 = 2.33, "
    "IR (R, SmG) 62.64 - 61.41 = 1.23",
    "SmG minus simp 6.67": "Table 2: 46.64 - 39.93 = 6.71",
    "maps of non-robust networks compare unfavourably with JR or permuted maps": "true on "
    "CIFAR-10; in Table 1 IR (NR, SmG) beats the permuted maps in 4 of 5 attacks, IR (NR, simp) in "
    "1 of 5",
}
