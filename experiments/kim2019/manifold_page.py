"""The page of `manifold`: distances to the image manifold, Figures 1 and 2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from experiments.common.experiment import Task
from experiments.common.page import Drawing, Report, Table
from experiments.kim2019 import claims, figures
from experiments.kim2019.adversaries import STANDARD, Adversary
from experiments.kim2019.published import ACCURACY, MODES_READ_OFF
from experiments.kim2019.study import ABOUT, SCALES

__all__ = ["report"]

PROJECTIONS = {"mean": "encoder's mean", "sample": "one draw", "search": "nearest found"}
_LEVELS = ("weak", "medium", "strong")


def report(
    task: Task,
    frames: Mapping[str, pd.DataFrame],
    measured: Mapping[str, Mapping[str, float]],
    attacked: Mapping[str, Callable[[], dict[str, np.ndarray]]],
    *,
    test_images: str,
) -> Report:
    """Tables, figures and claims of what is finished.

    Args:
        task: of the experiment.
        frames: distances by network; those of the unperturbed images under `test_images`.
        measured: accuracies by network.
        attacked: adversarial images by network, read when they are drawn.
        test_images: name of the frame of unperturbed images.
    """
    settings = task.settings
    networks = {name: frame for name, frame in frames.items() if name != test_images}
    unperturbed = frames.get(test_images)
    return Report(
        title=f"Kim 2019: distance to the image manifold, {settings.dataset}",
        lead=f"{SCALES[task.preset]} {ABOUT} Measured are l2 attacks of radius "
        f"{settings.attack_epsilon:g} on test images, by cross-entropy.",
        tables=[
            Table(
                "Accuracy",
                "On unperturbed test images, per cent; published: appendix A.2.",
                _accuracies(settings.dataset, measured),
            ),
            Table(
                "Distances",
                "Medians of ||x - projection||_2 over adversarials that changed the prediction of "
                "the attacked network (own) or of the standard network (as in the released code). "
                "Mode: of the density in Figure 1, one draw, judged by the standard network, on "
                "the axis (d - min) / (max - min) of the test images.",
                _distances(settings.dataset, networks, unperturbed),
            ),
        ],
        drawings=_drawings(task, networks, unperturbed, attacked),
        claims=claims.manifold(networks, list(settings.adversaries)),
    )


def _accuracies(dataset: str, measured: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    published = ACCURACY.get(dataset, {})
    return pd.DataFrame(
        {
            "training": name,
            "accuracy": 100 * values["accuracy"],
            "published": published.get(name, np.nan),
        }
        for name, values in measured.items()
        if "accuracy" in values
    )


def _distances(
    dataset: str, networks: Mapping[str, pd.DataFrame], unperturbed: pd.DataFrame | None
) -> pd.DataFrame:
    rows = []
    if unperturbed is not None:
        rows.append(
            {
                "images": "test images",
                "examples": len(unperturbed),
                **{f"own, {text}": unperturbed[by].median() for by, text in PROJECTIONS.items()},
            }
        )
    for name, frame in networks.items():
        own, standard = claims.changed(frame, "own"), claims.changed(frame, "standard")
        mode = np.nan
        if unperturbed is not None:
            scaled = figures.on_paper_axis(standard["sample"], unperturbed["sample"])
            mode = figures.mode_of(scaled)
        rows.append(
            {
                "images": f"against {name}",
                "examples": len(frame),
                "changed, own": len(own),
                "changed, standard": len(standard),
                "zero gradient": int(frame["zero_gradient"].sum()),
                **{f"own, {text}": own[by].median() for by, text in PROJECTIONS.items()},
                "standard, one draw": standard["sample"].median(),
                "mode": mode,
                "mode, published (read off)": _published_mode(dataset, name),
            }
        )
    return pd.DataFrame(rows)


def _published_mode(dataset: str, name: str) -> float:
    """Of Figure 1; the standard network's is its mean over the four panels."""
    panels = MODES_READ_OFF.get(dataset, {})
    adversary = Adversary.of(name)
    if adversary.norm is None:
        values = [panel["standard"] for panel in panels.values()]
        return float(np.mean(values)) if values else np.nan
    radii = {
        "l2": (0.1, 0.4, 1.6) if dataset == "cifar10" else (1, 2, 4),
        "linf": (0.005, 0.01, 0.02) if dataset == "cifar10" else (0.05, 0.1, 0.2),
    }[adversary.norm]
    panel = panels.get(f"{adversary.norm}_{adversary.objective}", {})
    level = dict(zip(radii, _LEVELS, strict=True)).get(adversary.epsilon)
    value = panel.get(level)
    return np.nan if value is None else value


def _drawings(
    task: Task,
    networks: Mapping[str, pd.DataFrame],
    unperturbed: pd.DataFrame | None,
    attacked: Mapping[str, Callable[[], dict[str, np.ndarray]]],
) -> list[Drawing]:
    if unperturbed is None or STANDARD not in networks:
        return []
    families: dict[str, list[str]] = {}
    for name in networks:
        if name != STANDARD:
            families.setdefault(Adversary.of(name).family, [STANDARD]).append(name)
    drawings = []
    for judge, by, text in (
        ("own", "mean", "Attacks that changed the attacked network's prediction; encoder's mean."),
        ("standard", "sample", "As released: judged by the standard network; one draw."),
    ):
        panels = {
            family: {name: claims.changed(networks[name], judge)[by].to_numpy() for name in names}
            for family, names in families.items()
        }
        drawings.append(
            Drawing(
                f"Figure 1, judged by the {judge} network" if judge == "standard" else "Figure 1",
                f"{text} The axis is (d - min) / (max - min) of the test images' distances.",
                f"figure1-{judge}",
                partial(figures.densities, panels, unperturbed[by].to_numpy()),
            )
        )
    index = 1 if task.settings.dataset == "cifar10" else 0

    def examples() -> Any:
        arrays = {name: read() for name, read in attacked.items()}
        test = task.data["test"]
        return figures.adversarials(
            test.images[index],
            int(test.labels[index]),
            {
                name: (each["adversarials"][index], int(each["after"][index]))
                for name, each in arrays.items()
            },
        )

    text = "Adversarials of one test image; over each the attacked network's class."
    return [*drawings, Drawing("Figure 2", text, "figure2", examples)]
