"""`tfrobust report`'s steps: checks of the classifiers, then their measures, computed once."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import reference_models
from tfrobust import data, saliency
from tfrobust.attacks import ThreatModel, prepare, robust_accuracy
from tfrobust.classifier import NotLogitsError, classes_of, model_input_shape
from tfrobust.commands.report.page import write_page
from tfrobust.commands.report.records import NAMES, Beginnings, Pixels, Source
from tfrobust.commands.report.settings import Command, Found, LeftOut, Settings
from tfrobust.commands.report.table import ADVERSARIAL, Measured, terms_of
from tfrobust.commands.terminal import concerning
from tfrobust.errors import InputError
from tfrobust.evaluation import benchmark
from tfrobust.report import Run

__all__ = ["report"]


@dataclasses.dataclass(frozen=True)
class _Classifier:
    """A classifier with its test examples, in the range that it takes."""

    found: Found
    record: dict[str, Any]
    source: Source
    test: data.Dataset
    sha256: str
    """Of the file."""

    @property
    def is_table(self) -> bool:
        return self.test.images.ndim == 2

    @property
    def unit(self) -> float:
        """The unit of lengths, in the network's input units: the pixel range; 1 for tables."""
        low, high = self.test.value_range
        return 1.0 if self.is_table else high - low

    @property
    def folder(self) -> str:
        """Of its results, by the contents that they depend on."""
        parts = (self.sha256, self.source.sha256, self.test.provenance.sha256)
        return f"classifiers/{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:16]}"

    @property
    def examples_file(self) -> str:
        return f"{self.folder}/examples.parquet"

    def threat(self, settings: Settings) -> ThreatModel:
        """In the network's input units."""
        return ThreatModel(
            norm=float(settings.norm),
            epsilon=settings.epsilon * self.unit,
            steps=settings.steps,
            random_start="ball",
            value_range=self.test.value_range,
        )

    def no_robust_accuracy(self, settings: Settings) -> str | None:
        """Why robust accuracy is not given: epsilon may be for images, and too large for a table.

        Raises:
            InputError: epsilon is larger than the pixel range of images allows.
        """
        shape = self.test.images.shape[1:]
        if not self.is_table:
            with concerning(f"--epsilon {settings.epsilon:g} for {self.source.name}"):
                dataclasses.replace(
                    self.threat(settings), epsilon=settings.epsilon, value_range=(0.0, 1.0)
                ).check_epsilon(shape)
            return None
        low, high = self.test.value_range
        largest = (high - low) * (math.sqrt(math.prod(shape)) if settings.norm == "2" else 1)
        if settings.epsilon > largest:
            return f"epsilon {settings.epsilon:g} exceeds {largest:g}, the widest distance there"
        return None


@dataclasses.dataclass(frozen=True)
class _Maps:
    """SmoothGrad maps of an adversarially trained network, and what it was trained on."""

    folder: Path
    source: Source


def report(command: Command, found: tuple[list[Found], list[LeftOut]]) -> Path:
    """Run all checks, then measure what is not measured yet; returns the page's path.

    Args:
        command: settings.
        found: what `classifiers_in` returned.

    Raises:
        InputError: epsilon is larger than the pixel range allows, an unknown attack, a record of
            pixels that cannot be read, or no classifier that can be measured.
        ModelFileError: a damaged model; names it.
        DataNotFoundError: a data set is not on this machine; names it.
        RunFolderError: the folder holds a report with other settings.
    """
    settings = Settings(**{f.name: getattr(command, f.name) for f in dataclasses.fields(Settings)})
    beginnings = Beginnings(command.data_dir, command.examples)
    models, left_out = found
    left_out, classifiers = list(left_out), []
    for each in models:
        classifier = _described(each, beginnings)
        reason = classifier if isinstance(classifier, str) else None
        if reason is None:
            classifier.no_robust_accuracy(settings)  # before anything is computed
            if not (command.out / classifier.examples_file).exists():
                reason = _unfit(classifier, settings)
        if reason is None:
            classifiers.append(classifier)
        else:
            left_out.append(LeftOut(str(each), reason))
    if not classifiers:
        first = left_out[0]
        raise InputError(
            f"none of the {len(left_out)} models can be measured; {first.model}: {first.reason}"
        )
    run = Run(command.out, settings)
    maps = _maps(classifiers)
    measured = [
        _measured(run, each, settings, beginnings, maps.get(each.source.name, ()))
        for each in classifiers
    ]
    return write_page(run, settings, measured, left_out, command.runs)


def _described(found: Found, beginnings: Beginnings) -> _Classifier | str:
    """A classifier by the record beside it, or why it is left out."""
    try:
        record = reference_models.provenance(found.path)
    except reference_models.ModelFileError as error:
        return str(error)
    source = Source.of(record)
    if source is None:
        return "the record beside it does not say what it was trained on"
    if source.name not in NAMES:
        return f"its data set, {source.name}, is none of {', '.join(NAMES)}"
    pixels = Pixels.of(source.processing, str(found))
    test = beginnings.test(source)
    if test is None:
        return f"its points are of an unknown version, {source.version!r}"
    with concerning(f"model {found}"):
        test = pixels.of_set(test)
    if isinstance(test, str):
        return test
    with found.path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return _Classifier(found, record, source, test, sha256)


def _unfit(classifier: _Classifier, settings: Settings) -> str | None:
    """Why a model is no classifier of its data.

    Raises:
        ModelFileError: it is damaged.
        InputError: an unknown attack.
    """
    test = classifier.test
    model = reference_models.load(classifier.found.path)
    for variable in model.variables:
        if not np.isfinite(variable.numpy()).all():
            return f"{variable.path} holds NaN or infinite values"
    shape, expected = test.images.shape[1:], model_input_shape(model)
    fits = len(expected or ()) == len(shape) and all(
        size in (None, actual) for size, actual in zip(expected, shape, strict=True)
    )
    if not fits:
        return f"it takes inputs of shape {expected}, {test.provenance.name} has {shape}"
    try:
        classes = classes_of(model, test.images[:1])
    except NotLogitsError as error:
        return f"it is no classifier: {error}"
    if classes != test.classes:
        return f"it has {classes} classes, {test.provenance.name} has {test.classes}"
    within = {"value_range": test.value_range, "norm": float(settings.norm), "settings": {}}
    with concerning(f"model {classifier.found}"):
        prepare(settings.attack, model, test.images[:1], **within)
    return None


def _measured(
    run: Run,
    classifier: _Classifier,
    settings: Settings,
    beginnings: Beginnings,
    maps: Sequence[_Maps],
) -> Measured:
    """A classifier with its results, each a step of the run folder."""
    frame = run.frame_step(
        classifier.examples_file, lambda: _measured_examples(classifier, settings)
    )
    cosine, reasons = math.nan, {}
    uncertified = frame["uncertified"].iloc[0]
    if uncertified:
        reasons["certified bound"] = uncertified
    too_large = classifier.no_robust_accuracy(settings)
    if too_large:
        reasons["robust, %"] = too_large
    if maps:
        # other maps, or more of them, are another step
        digest = hashlib.sha256(b"".join((each.folder / "maps.json").read_bytes() for each in maps))
        file = f"{classifier.folder}/cosine-{digest.hexdigest()[:16]}.json"
        # what is missing now may be there the next time: only results are kept
        found = run.read_json(file) if run.has(file) else _cosine(classifier, beginnings, maps)
        if isinstance(found, str):
            reason = found
        else:
            run.json_step(file, lambda: found)
            cosine, reason = found["cosine"], None
    else:
        reason = (
            "no given run has SmoothGrad maps of an adversarially trained network on "
            f"{classifier.source.name}"
        )
    if reason:
        reasons["cosine"] = reason
    return Measured(
        classifier.found,
        classifier.record,
        classifier.source.name,
        classifier.sha256,
        classifier.is_table,
        frame,
        cosine,
        reasons,
    )


def _measured_examples(classifier: _Classifier, settings: Settings) -> pd.DataFrame:
    """One row per test example; lengths in units of the pixel range.

    Columns as of `Measured.examples`.
    """
    examples = f"{len(classifier.test)} examples of {classifier.source.name}"
    print(f"{classifier.found}: {examples}", flush=True)
    gc.collect()  # graphs of the networks before
    model = reference_models.load(classifier.found.path)
    test, unit, norm = classifier.test, classifier.unit, float(settings.norm)
    x, labels = test.arrays
    result = benchmark(
        model,
        x,
        labels,
        epsilon=settings.epsilon * unit,
        attacks=(settings.attack,),
        value_range=test.value_range,
        norm=norm,
        batch_size=settings.batch_size,
    )
    gradients = saliency.gradient(model, x, labels, batch_size=settings.batch_size)
    columns = {
        "label": labels,
        "predicted": result.predicted,
        "correct": result.correct,
        "linearized_robustness": result.linearized_robustness.astype(np.float64) / unit,
        "attack_distance": result.distance.astype(np.float64) / unit,
        "certified_bound": result.certified_radius.astype(np.float64) / unit,
        "alignment": _alignment(classifier, model, settings.batch_size),
        "gradient_norm": np.linalg.norm(_flat(gradients), axis=1) * unit,
        "uncertified": [result.uncertified or ""] * len(x),
    }
    if classifier.no_robust_accuracy(settings) is None:
        (found,) = robust_accuracy(
            model,
            test,
            classifier.threat(settings),
            restarts=settings.restarts,
            batch_size=settings.batch_size,
        )
        resisted = found.to_frame().filter(like="resisted_")
        columns |= {name: resisted[name].to_numpy() for name in resisted}
    return pd.DataFrame(columns)


def _alignment(classifier: _Classifier, model: Any, batch_size: int) -> np.ndarray:
    """(count,) float64, Etmann 2019, eq. (7), of pixels in [0, 1]: it depends on their zero."""
    x = _flat(classifier.test.images)
    if not classifier.is_table:
        x = (x - classifier.test.value_range[0]) / classifier.unit
    gradients = _flat(saliency.gradient(model, classifier.test.images, batch_size=batch_size))
    norms = np.linalg.norm(gradients, axis=1)
    inner = np.abs((x * gradients).sum(axis=1))
    return np.divide(inner, norms, out=np.full(len(x), np.nan), where=norms > 0)


def _maps(classifiers: Sequence[_Classifier]) -> Mapping[str, list[_Maps]]:
    """SmoothGrad maps of adversarially trained networks in the runs, by data set."""
    result: dict[str, dict[Path, _Maps]] = {}
    for each in classifiers:
        if ADVERSARIAL not in [name for name, _ in terms_of(each.record)]:
            continue
        # as experiments.noack2020 names them
        teacher = each.found.network.split("/")[0]
        folder = each.found.folder / "targets" / f"{teacher}-smg"
        if (folder / "maps.json").exists() and (folder / "maps.npy").exists():
            result.setdefault(each.source.name, {})[folder] = _Maps(folder, each.source)
    return {name: list(folders.values()) for name, folders in result.items()}


def _cosine(
    classifier: _Classifier, beginnings: Beginnings, maps: Sequence[_Maps]
) -> dict[str, Any] | str:
    """Mean cosine of the label's logit gradient with the maps of the same images, or why not."""
    own = beginnings.training(classifier.source)
    if own is None:
        return "its training images are not at hand"
    reasons = []
    for each in maps:
        targets = beginnings.targets(each.folder, each.source)
        if isinstance(targets, str):
            reasons.append(targets)
            continue
        theirs = beginnings.training(each.source)[0]
        count = min(len(own[0]), len(theirs))
        pairs = zip(own[0].arrays, theirs.arrays, strict=True)
        if not all(np.array_equal(a[:count], b[:count]) for a, b in pairs):
            reasons.append(f"the maps in {each.folder} are of other training images")
            continue
        model = reference_models.load(classifier.found.path)
        images, labels = (array[:count] for array in own[1].arrays)
        a, b = _flat(saliency.gradient(model, images, labels)), _flat(targets[:count])
        products = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosines = np.divide((a * b).sum(axis=1), products, out=np.zeros(count), where=products > 0)
        return {"cosine": float(cosines.mean()), "maps": str(each.folder), "images": count}
    return "; ".join(dict.fromkeys(reasons))


def _flat(rows: np.ndarray) -> np.ndarray:
    """(count, ...) to (count, values) in double precision."""
    return rows.reshape(len(rows), -1).astype(np.float64)
