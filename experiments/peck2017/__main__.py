"""All experiments of Peck 2017 in one folder, with a page that links theirs.

    python -m experiments.peck2017 --preset demo [--out FOLDER] [--data-dir FOLDER]

Settings of a single experiment are set by its own module; this one takes a preset only.
"""

from __future__ import annotations

from functools import partial

from experiments.common.whole_study import Part, Study, execute_study
from experiments.peck2017 import (
    cnns,
    depth,
    kernels,
    linear,
    normalisation,
    random_mlps,
    regularised,
    study,
    trained_mlps,
)
from tfrobust.commands import run

STUDY = Study(
    "peck2017",
    "Peck 2017",
    study.ABOUT,
    study.SCALES,
    {
        "linear": Part(linear.EXPERIMENT, "Table 3.1, Figure 3.2"),
        "random-mlps": Part(random_mlps.EXPERIMENT, "Tables 4.1, 4.2, Figure 4.1"),
        "trained-mlps": Part(trained_mlps.EXPERIMENT, "Table 4.3, Figure 4.2"),
        "regularised": Part(regularised.EXPERIMENT, "Figure 4.3"),
        "cnns": Part(cnns.EXPERIMENT, "Tables 5.1, 5.2, Figures 2.5, 5.8 to 5.11"),
        "kernels": Part(kernels.EXPERIMENT, "Figures 5.12, 5.13"),
        "normalisation": Part(normalisation.EXPERIMENT, "Table 5.3"),
        "depth": Part(depth.EXPERIMENT, "Section 6.1: depth against width"),
    },
)
PRESETS = STUDY.settings
main = partial(execute_study, STUDY)


if __name__ == "__main__":
    run(main)
