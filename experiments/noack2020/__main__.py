"""All experiments of Noack 2020 in one folder, with a page that links theirs.

    python -m experiments.noack2020 --preset demo [--out FOLDER] [--data-dir FOLDER]

Settings of a single experiment are set by its own module; this one takes a preset only.
"""

from __future__ import annotations

from functools import partial

from experiments.common.whole_study import Part, Study, execute_study
from experiments.noack2020 import cifar10, mnist, permutation, search, study
from tfrobust.commands import run

STUDY = Study(
    "noack2020",
    "Noack 2020",
    study.ABOUT,
    study.SCALES,
    {
        "mnist": Part(mnist.EXPERIMENT, "Table 1, Figures 1 and 4"),
        "permutation": Part(
            permutation.EXPERIMENT,
            "Figures 2 and 3",
            # the same robust network
            lambda folder: ("--teachers", str(folder / "mnist")),
        ),
        "search": Part(
            search.EXPERIMENT,
            "Weights of both penalties",
            lambda folder: ("--teachers", str(folder / "mnist")),
        ),
        "cifar10": Part(cifar10.EXPERIMENT, "Table 2, Figures 1 and 4"),
    },
)
PRESETS = STUDY.settings
main = partial(execute_study, STUDY)


if __name__ == "__main__":
    run(main)
