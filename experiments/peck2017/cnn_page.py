"""The page of `cnns`: Tables 5.1 and 5.2, Figures 2.5 and 5.8 to 5.11."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import numpy as np
import pandas as pd

from experiments.common.experiment import Task
from experiments.common.members import Progress
from experiments.common.page import Drawing, Report, Table
from experiments.peck2017 import claims, cnn_claims, figures, published, study
from experiments.peck2017.comparison import FGS, quantities, statistics
from experiments.peck2017.networks import Network, networks
from tfrobust import attacks
from tfrobust.data import Dataset
from tfrobust.report import figures as plots

__all__ = ["report"]

PICTURED, DRAWN = 6, 3
NAMES = {
    "cifar10": (
        *("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship"),
        "truck",
    )
}


@dataclasses.dataclass(frozen=True)
class _Found:
    """A finished network and what was found."""

    key: str
    network: Network
    test: Dataset
    accuracy: float
    frame: pd.DataFrame
    iterated: dict[str, np.ndarray]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes."""
        return NAMES.get(self.network.data, tuple(map(str, range(self.test.classes))))

    @property
    def epsilons(self) -> pd.Series:
        """FGS's epsilon for pixels in [0, 255], NaN where it failed."""
        return self.frame["epsilon"] * self.network.scale

    def row_5_1(self) -> dict[str, float]:
        """Means for pixels in [0, 255] over height times width, as the thesis divides."""
        factor = self.network.scale / math.prod(self.test.images.shape[1:3])
        return {
            "Normalized theoretical bound": float(self.frame["printed"].mean() * factor),
            "Normalized empirical bound": float(self.frame[FGS].mean() * factor),
            "Rate": float(self.frame[FGS].notna().mean()),
            "certified bound, normalized": float(self.frame["certified"].mean() * factor),
        }

    def row_of_network(self) -> dict[str, object]:
        """What was trained, beside its row of Table 5.1."""
        return {
            "network": self.network.title,
            "data": self.test.provenance.source,
            "test accuracy": self.accuracy,
            "thesis's accuracy": published.PROSE["5.3.1", f"{self.network.title} accuracy"],
            "images": len(self.frame),
            **self.row_5_1(),
        }


def report(task: Task, progress: Progress) -> Report:
    """Tables 5.1 and 5.2, Figures 2.5 and 5.8 to 5.11."""
    settings = task.settings
    found = {}
    for result in study.read_results(task, progress):
        key = result.settings["network"]
        network, test = networks(settings)[key], task.data[key]["test"]
        iterated = task.run.read_arrays(f"{key}/iterated.npz")
        found[network.title] = _Found(key, network, test, result.accuracy, result.frame, iterated)
    own = {title: each for title, each in found.items() if each.network.is_the_thesis_data}
    frames = {title: each.frame for title, each in found.items()}
    epsilons = {title: statistics(each.epsilons) for title, each in found.items()}
    return study.report_of(
        task,
        title="convolutional networks",
        lead="FGS by Algorithm 2.1, epsilon up to 100 of 255, labels are the networks' own "
        f"predictions. Ours, not stated: Adam, batches of {settings.batch_size}.",
        tables=[
            Table(
                "Table 5.1",
                "Frobenius norms for pixels in [0, 255], means over the images divided by height "
                "times width: the thesis's CIFAR-NIN is divided by 1,024, though the text says 3 x "
                "32 x 32.",
                pd.DataFrame([each.row_of_network() for each in found.values()]),
            ),
            Table("Table 5.2", "FGS's epsilon, pixels in [0, 255].", _rows_of(epsilons)),
            study.cells("5.1", {title: each.row_5_1() for title, each in own.items()}),
            study.cells("5.2", {title: epsilons[title] for title in own}),
            Table("Quantities", study.ABOUT, quantities(frames)),
            *_against_lbfgs(task, found),
        ],
        drawings=[
            *(_overview(found) if found else []),
            *(drawing for each in found.values() for drawing in _drawings(task, each)),
        ],
        claims=[
            *claims.bounds_hold(frames, "Theorems 3.6, 4.2, 5.1, 5.3"),
            *(
                claim
                for title, each in own.items()
                for claim in cnn_claims.changes(each.frame, title, each.names)
            ),
            *(
                claim
                for title, each in found.items()
                for claim in cnn_claims.iterated(each.iterated, title)
            ),
            *cnn_claims.levels(
                {title: each.frame for title, each in own.items()},
                {title: each.network.scale for title, each in own.items()},
            ),
        ],
    )


def _against_lbfgs(task: Task, found: dict[str, _Found]) -> list[Table]:
    """The table of the networks that were attacked with L-BFGS; none without one."""
    places = {title: f"{each.key}/{study.LBFGS}" for title, each in found.items()}
    frames = {
        title: task.run.read_frame(place)
        for title, place in places.items()
        if task.run.exists(place)
    }
    text = "The thesis's future work: bounds against L-BFGS, in the networks' input units."
    return [Table("Bounds against L-BFGS", text, quantities(frames))] if frames else []


def _rows_of(values: dict[str, dict[str, float]]) -> pd.DataFrame:
    return pd.DataFrame([{"network": name, **row} for name, row in values.items()])


def _overview(found: dict[str, _Found]) -> list[Drawing]:
    """Figures 5.10 and 5.11."""
    counts = {
        title: study.class_changes(each.frame, each.test.classes) for title, each in found.items()
    }
    names = {title: each.names for title, each in found.items()}
    epsilons = {title: each.epsilons.dropna().to_numpy() for title, each in found.items()}
    frames = {title: each.frame for title, each in found.items()}
    return [
        Drawing(
            "Figure 5.10",
            "Images by their class before and after FGS; what it does not change is left out.",
            "figure5.10",
            partial(figures.heatmaps, counts, names),
        ),
        Drawing(
            "Figure 5.11",
            "FGS's epsilon, pixels in [0, 255].",
            "figure5.11",
            partial(figures.boxplots, epsilons, ylabel="epsilon"),
        ),
        *figures.scatter_of(frames, "Bounds against attacks", "bounds"),
    ]


def _drawings(task: Task, found: _Found) -> list[Drawing]:
    """Figures 5.8 or 5.9, and 2.5, of one network."""
    key, network, test, names = found.key, found.network, found.test, found.names
    changes = task.run.read_arrays(f"{key}/perturbations.npz")["perturbation"]
    rows = found.frame[: len(changes)]
    shown = np.flatnonzero(rows[FGS].notna())[:PICTURED]
    drawings = []
    if len(shown):
        titles = [
            f"{names[int(row['predicted'])]} -> {names[int(row['becomes'])]}\n"
            f"epsilon {row['epsilon'] * network.scale:.2f}"
            for _, row in rows.iloc[shown].iterrows()
        ]
        drawings.append(
            Drawing(
                f"Figure {network.gallery}",
                "Test images, what they become, and FGS's epsilon for pixels in [0, 255].",
                f"figure{network.gallery}",
                partial(
                    figures.gallery, test.images[shown], changes[shown], titles, test.value_range
                ),
            )
        )
    # norm and names are arrays without dimensions
    values = {name: v[:DRAWN] if v.ndim else v.item() for name, v in found.iterated.items()}
    steps = found.iterated["step_distance"].shape[1]
    drawings.append(
        Drawing(
            f"Figure 2.5, {network.title}",
            f"Section 2.7, n = {steps}: each image is the smallest perturbation that FGS finds of "
            "the one before; below, what was added to it, and first the last image minus the "
            "first.",
            f"figure2.5-{key}",
            partial(
                plots.iterated_perturbation,
                attacks.IteratedPerturbation(**values),
                task.run.folder / "figures" / f"figure2.5-{key}.png",
                value_range=test.value_range,
                class_names=names,
                perturbations=True,
            ),
        )
    )
    return drawings
