"""LeNet-5 and Network in Network (Tables 5.1, 5.2, Figures 2.5, 5.8 to 5.11).

python -m experiments.peck2017.cnns --preset demo
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd

import reference_models
from experiments.common.experiment import Task, execute
from experiments.common.members import Member
from experiments.peck2017 import study
from experiments.peck2017.cnn_page import report
from experiments.peck2017.comparison import AS_PRINTED, FGS, compare, fgs_and
from experiments.peck2017.networks import PRESETS, check_settings, load, members, networks
from tfrobust import attacks
from tfrobust.commands import run

PERTURBED, ITERATED, STEPS = 24, 20, 5


def steps(task: Task, member: Member) -> Iterator[None]:
    """Train or load, bound and attack, perturb the first images."""
    name, settings = member.folder, task.settings
    network, sets = networks(settings)[name], task.data[name]
    test = sets["test"]
    model = study.trained(
        task,
        member,
        partial(
            reference_models.build,
            name,
            input_shape=test.images.shape[1:],
            classes=test.classes,
        ),
        sets.get("train"),
        weights=network.weights,
        iterations=network.iterations,
        batch_size=settings.batch_size,
        learning_rate=network.learning_rate,
        seed=settings.seed,
        validation=None if network.weights else sets["validation"].arrays,
    )
    yield
    x, within, reach = test.images[: network.images], test.value_range, study.REACH * network.pixels
    chosen = fgs_and("none", max_epsilon=reach)
    if network.carlini_wagner["steps"]:
        chosen["carlini_wagner"] = network.carlini_wagner
    yield from study.bound_attack_and_test(
        task, member, model, x, test, chosen, tighten=network.tighten
    )
    options = {"value_range": within, "max_epsilon": reach, **AS_PRINTED}

    def perturbed() -> dict[str, np.ndarray]:
        result = attacks.minimal(model, x[:PERTURBED], FGS, **options)
        return {"perturbation": result.perturbation}

    def iterated() -> dict[str, np.ndarray]:
        halvings = {"attack_steps": options["steps"]}
        others = {key: value for key, value in options.items() if key != "steps"}
        result = attacks.iterate(model, x[:ITERATED], FGS, steps=STEPS, **halvings, **others)
        return dataclasses.asdict(result)

    def by_lbfgs() -> pd.DataFrame:
        rows = x[: settings.lbfgs_images]
        return compare(model, rows, within, {"lbfgs": {}}, tighten=network.tighten)

    task.run.arrays_step(f"{name}/perturbations.npz", perturbed)
    yield
    task.run.arrays_step(f"{name}/iterated.npz", iterated)
    yield
    if settings.lbfgs_images:
        task.run.frame_step(f"{name}/{study.LBFGS}", by_lbfgs)
        yield


EXPERIMENT = study.define(
    "cnns",
    PRESETS,
    load,
    members,
    steps,
    report,
    complete=(study.BOUNDED, study.TESTED, "perturbations.npz", "iterated.npz"),
    check_settings=check_settings,
    files=("lenet_weights", "nin_weights"),
)
main = partial(execute, EXPERIMENT)


if __name__ == "__main__":
    run(main)
