"""The page of `cnns`: Tables 5.1 and 5.2, Figures 2.5 and 5.8 to 5.11."""

from __future__ import annotations

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


def report(task: Task, progress: Progress) -> Report:
    """Tables 5.1 and 5.2, Figures 2.5 and 5.8 to 5.11."""
    settings = task.settings
    results = study.read_results(task, progress)
    frames, own, rows, judged, drawings, counts, names = {}, {}, [], [], [], {}, {}
    normalized, epsilons, scales, by_lbfgs = {}, {}, {}, {}
    for result in results:
        key = result.settings["network"]
        network, test, frame = networks(settings)[key], task.data[key]["test"], result.frame
        title, place = network.title, f"{key}/{study.LBFGS}"
        frames[title], scales[title] = frame, network.scale
        names[title] = NAMES.get(network.data, tuple(map(str, range(test.classes))))
        if task.run.exists(place):
            by_lbfgs[title] = task.run.read_frame(place)
        counts[title] = study.class_changes(frame, test.classes)
        rate = float(frame[FGS].notna().mean())
        pixels = math.prod(test.images.shape[1:3])
        normalized[title] = {
            "Normalized theoretical bound": frame["printed"].mean() * network.scale / pixels,
            "Normalized empirical bound": frame[FGS].mean() * network.scale / pixels,
            "Rate": rate,
        }
        epsilons[title] = {**statistics(frame["epsilon"] * network.scale), "Rate": rate}
        rows.append(
            {
                "network": title,
                "data": test.provenance.source,
                "test accuracy": result.accuracy,
                "thesis's accuracy": published.PROSE["5.3.1", f"{title} accuracy"],
                "images": len(frame),
                **normalized[title],
                "certified bound, normalized": frame["certified"].mean() * network.scale / pixels,
            }
        )
        if network.is_the_thesis_data:
            judged += cnn_claims.changes(frame, title, names[title])
            own[title] = frame
        arrays = task.run.read_arrays(f"{key}/iterated.npz")
        judged += cnn_claims.iterated(arrays, title)
        drawings += _drawings(task, key, network, test, frame, arrays, names[title])
    tables = [
        Table(
            "Table 5.1",
            "Frobenius norms for pixels in [0, 255], means over the images divided by height times "
            "width: the thesis's CIFAR-NIN is divided by 1,024, though the text says 3 x 32 x 32.",
            pd.DataFrame(rows),
        ),
        Table("Table 5.2", "FGS's epsilon, pixels in [0, 255].", _rows_of(epsilons)),
        study.cells("5.1", {title: normalized[title] for title in own}),
        study.cells("5.2", {title: epsilons[title] for title in own}),
        Table("Quantities", study.ABOUT, quantities(frames)),
    ]
    if by_lbfgs:
        text = "The thesis's future work: bounds against L-BFGS, in the networks' input units."
        tables.append(Table("Bounds against L-BFGS", text, quantities(by_lbfgs)))
    return study.report_of(
        task,
        title="convolutional networks",
        lead=f"FGS by Algorithm 2.1, epsilon up to 100 of 255, labels are the networks' own "
        f"predictions. Ours, not stated: Adam, batches of {settings.batch_size}.",
        tables=tables,
        drawings=[*_overview(frames, scales, counts, names), *drawings],
        claims=[
            *claims.bounds_hold(frames, "Theorems 3.6, 4.2, 5.1, 5.3"),
            *judged,
            *cnn_claims.levels(own, scales),
        ],
    )


def _rows_of(values: dict[str, dict[str, float]]) -> pd.DataFrame:
    return pd.DataFrame([{"network": name, **row} for name, row in values.items()])


def _overview(
    frames: dict[str, pd.DataFrame],
    scales: dict[str, float],
    counts: dict[str, np.ndarray],
    names: dict[str, tuple[str, ...]],
) -> list[Drawing]:
    """Figures 5.10 and 5.11."""
    if not frames:
        return []
    epsilons = {
        name: (frame["epsilon"].dropna() * scales[name]).to_numpy()
        for name, frame in frames.items()
    }
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


def _drawings(
    task: Task,
    name: str,
    network: Network,
    test: Dataset,
    frame: pd.DataFrame,
    arrays: dict[str, np.ndarray],
    names: tuple[str, ...],
) -> list[Drawing]:
    """Figures 5.8 or 5.9, and 2.5, of one network."""
    changes = task.run.read_arrays(f"{name}/perturbations.npz")["perturbation"]
    found = np.flatnonzero(frame[FGS][: len(changes)].notna())[:PICTURED]
    titles = [
        f"{names[int(frame['predicted'][row])]} -> {names[int(frame['becomes'][row])]}\n"
        f"epsilon {frame['epsilon'][row] * network.scale:.2f}"
        for row in found
    ]
    # norm and names are arrays without dimensions
    values = {key: value if value.ndim else value.item() for key, value in arrays.items()}
    drawn = {k: v[:DRAWN] if isinstance(v, np.ndarray) else v for k, v in values.items()}
    drawings = [
        Drawing(
            f"Figure 2.5, {network.title}",
            f"Section 2.7, n = {arrays['step_distance'].shape[1]}: each image is the smallest "
            "perturbation that FGS finds of "
            "the one before; below, what was added to it, and first the last image minus the "
            "first.",
            f"figure2.5-{name}",
            partial(
                plots.iterated_perturbation,
                attacks.IteratedPerturbation(**drawn),
                task.run.folder / "figures" / f"figure2.5-{name}.png",
                value_range=test.value_range,
                class_names=names,
                perturbations=True,
            ),
        )
    ]
    if len(found):
        images = test.images[found]
        text = "Test images, what they become, and FGS's epsilon for pixels in [0, 255]."
        gallery = partial(figures.gallery, images, changes[found], titles, test.value_range)
        figure = network.gallery
        drawings.insert(0, Drawing(f"Figure {figure}", text, f"figure{figure}", gallery))
    return drawings
