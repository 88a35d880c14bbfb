"""ROAR and KAR: networks retrained on images whose most or least important pixels are gone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tfrobust.data import Data
from tfrobust.retraining.curves import RetrainingCurve, RetrainingScore
from tfrobust.retraining.study import Study
from tfrobust.training import RepeatedFit

__all__ = ["FRACTIONS", "kar", "random_baseline", "roar"]

FRACTIONS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Of Kim 2019, section 3.2."""


def roar(
    training: RepeatedFit,
    train: Data,
    test: Data,
    attributions: tuple[Any, Any],
    *,
    baseline: RetrainingCurve | None = None,
    fractions: Sequence[float] = FRACTIONS,
    retrains: int = 3,
    unoccluded: float | None = None,
    colour: Any = None,
    noise: float = 0.0,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: bool = True,
) -> RetrainingScore:
    """Remove and retrain (Hooker et al. 2018; Kim 2019, section 3.2).

    For each fraction, the pixels with the largest attribution are replaced in training and test
    images alike, networks are trained from fresh weights on the one and evaluated on the other. The
    better the attribution, the faster accuracy falls: the score is the area over the curve minus
    that of random pixels.

        training = RepeatedFit(build, CrossEntropy(), optimizer=make_optimizer, epochs=20)
        maps = [gradient(model, images, of="loss") for images in (train[0], test[0])]
        removed = roar(training, train, test, maps, folder="roar-gradient")
        kept = kar(training, train, test, maps, baseline=removed.baseline, folder="kar-gradient")
        print(removed.mu, removed.standard_error)

    A finished retrain is a file of its own in `folder`, and depends on no other: the same call
    resumes after the last finished one, and a call for more fractions or retrains trains only
    these. Random curves are shared by calls with one folder, or passed on as `baseline`.

    Args:
        training: the network, objective, optimizer, epochs and batch size of all retrains.
        train: images (count, height, width, channels) and labels (count,), as `fit` takes them, in
            memory.
        test: the same.
        attributions: of the training and of the test images: a pair of arrays (count, height,
            width, channels), which `pixel_attribution` makes into one number per pixel, or (count,
            height, width).
        baseline: of `random_baseline`, or of another score; trained where None.
        fractions: shares of pixels to replace, increasing, between 0 and 1.
        retrains: networks per fraction, each with weights and order of examples of its own.
        unoccluded: accuracy at which the curves begin; None for the mean of `retrains` networks
            trained without occlusion. The released code uses the standard network's. It cancels in
            the score.
        colour: (channels,) of replaced pixels; the mean colour of the training images where None.
        noise: breaks ties as the released code does; see `occluded_pixels`.
        seed: of all random numbers.
        folder: of finished retrains, one folder per attribution; nothing is written where None.
        progress: show a bar.

    Raises:
        ValueError: malformed data, attributions of images of another number or size, or with NaN or
            infinite values, fractions outside (0, 1), or a baseline without some fraction.
        SettingsChangedError: the folder holds retrains of other settings, data or attributions.
        DamagedRetrainError: a file in the folder cannot be read.
        FolderInUseError: another process, or another call in this one, retrains in the folder.
        NonFiniteLossError: a retrain diverged.
        OSError: the folder is not writable.
    """
    with closing(Study(training, train, test, colour, seed, folder, progress)) as study:
        return study.score("roar", attributions, baseline, fractions, retrains, unoccluded, noise)


def kar(
    training: RepeatedFit,
    train: Data,
    test: Data,
    attributions: tuple[Any, Any],
    *,
    baseline: RetrainingCurve | None = None,
    fractions: Sequence[float] = FRACTIONS,
    retrains: int = 3,
    unoccluded: float | None = None,
    colour: Any = None,
    noise: float = 0.0,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: bool = True,
) -> RetrainingScore:
    """Keep and retrain (Hooker et al. 2018; Kim 2019, section 3.2).

    As `roar`, but for each fraction the pixels with the largest attribution are kept and all others
    are replaced. The better the attribution, the slower accuracy falls: the score is the area under
    the curve minus that of random pixels. Accuracies stand at 1 - fraction, the share of replaced
    pixels, so that the random curve is ROAR's.

    Args:
        fractions: shares of pixels to keep, increasing, between 0 and 1.

    The other arguments and the errors are those of `roar`.
    """
    with closing(Study(training, train, test, colour, seed, folder, progress)) as study:
        return study.score("kar", attributions, baseline, fractions, retrains, unoccluded, noise)


def random_baseline(
    training: RepeatedFit,
    train: Data,
    test: Data,
    *,
    fractions: Sequence[float] = FRACTIONS,
    retrains: int = 3,
    unoccluded: float | None = None,
    colour: Any = None,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: bool = True,
) -> RetrainingCurve:
    """The curve of random pixels, the baseline of `roar` and `kar`.

    Each pixel is replaced with probability `fraction`. Every retrain has masks of its own, so that
    the spread includes theirs; the released code draws them once per fraction.

    Args:
        fractions: shares of pixels to replace, increasing, between 0 and 1.

    The other arguments and the errors are those of `roar`.
    """
    with closing(Study(training, train, test, colour, seed, folder, progress)) as study:
        return study.baseline(fractions, retrains, unoccluded)
