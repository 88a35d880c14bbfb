"""All experiments of Kim 2019 in one folder, with a page that links theirs.

    python -m experiments.kim2019 --preset demo [--out FOLDER] [--data-dir FOLDER]

Settings of a single experiment are set by its own module; this one takes a preset only.
"""

from __future__ import annotations

from functools import partial

from experiments.common.whole_study import Part, Study, execute_study
from experiments.kim2019 import gradients, manifold, retrain, study, tilting
from tfrobust.commands import run

STUDY = Study(
    "kim2019",
    "Kim 2019",
    study.ABOUT,
    study.SCALES,
    {
        "tilting": Part(tilting.EXPERIMENT, "Figure 3b"),
        "manifold": Part(manifold.EXPERIMENT, "Figures 1 and 2"),
        "gradients": Part(
            gradients.EXPERIMENT,
            "Figure 6",
            # the same classifiers
            lambda folder: ("--networks", str(folder / "manifold")),
        ),
        "retrain": Part(retrain.EXPERIMENT, "Figures 4 and 5"),
    },
)
PRESETS = STUDY.settings
main = partial(execute_study, STUDY)


if __name__ == "__main__":
    run(main)
