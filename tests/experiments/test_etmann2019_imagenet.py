"""The ImageNet experiment end to end on a few made-up images, and its presets."""

import numpy as np
import pandas as pd
import pytest
from helpers.small_application import small_mobilenet
from PIL import Image

from experiments.etmann2019 import imagenet, published
from experiments.etmann2019.results import read

CLASSES = 20


@pytest.fixture(scope="module", autouse=True)
def _small_network():
    with small_mobilenet():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One image in each of 20 classes."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for k in range(CLASSES):
        place = root / "val" / f"n{k:08d}"
        place.mkdir(parents=True)
        small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        small.resize((60, 48), Image.Resampling.BICUBIC).save(place / "0.JPEG", quality=95)
    return root


def arguments(folder, out, *more):
    return [
        *("--preset", "sample", "--model", "mobilenet", "--classes", str(CLASSES)),
        *("--size", "32", "--shorter-side", "33", "48", "--validation-side", "32"),
        *("--batch-size", "5", "--epochs", "1", "--lambdas", "100", "--evaluated", "9"),
        *("--attacked", "3", "--carlini-wagner-steps", "2", "--carlini-wagner-searches", "2"),
        *("--iterative-bisections", "2", "--evaluation-batch", "5", "--data-dir", str(folder)),
        *("--out", str(out), *more),
    ]


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    imagenet.main(arguments(folder, out))
    return out


def test_a_finished_run(finished):
    cohort = read(finished)
    assert cohort.name == "ImageNet sample"
    assert "not the study" in cohort.lead
    assert "9 of 20 evaluation images are measured" in cohort.lead
    assert [member.weight for member in cohort.members] == [100.0]
    assert cohort.pictures.shape == (8, 32, 32, 3)
    assert 0 <= cohort.pictures.min() < cohort.pictures.max() <= 1
    for member in cohort.members:
        assert len(member.alignment) == 9
        assert {len(frame) for frame in member.distances.values()} == {3}
        assert list(member.distances) == ["gradient", "basic_iterative", "carlini_wagner"]
        assert member.gradients.shape == (8, 32, 32, 3)
        assert (member.alignment["exact_gradients"] <= CLASSES).all()
        assert member.summary["classes"] == CLASSES
    html = (finished / "report.html").read_text()
    assert "saturates" not in html
    assert (finished / "figures" / "figure2.png").is_file()


@pytest.mark.slow  # as of the MNIST half
def test_a_second_run_makes_the_lost_step_alike_and_reuses_the_others(folder, finished):
    path = finished / "models" / "lambda-100" / "alignment.parquet"
    table = pd.read_parquet(path)
    path.unlink()
    files = [path for path in (finished / "models").rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    imagenet.main(arguments(folder, finished))
    assert {path: path.stat().st_mtime_ns for path in files} == before
    pd.testing.assert_frame_equal(pd.read_parquet(path), table, rtol=1e-4)


def test_the_wrong_number_of_classes(folder, tmp_path):
    with pytest.raises(ValueError, match=r"20 .*1000|1,?000 .*20"):
        imagenet.main([*arguments(folder, tmp_path), "--classes", "1000"])


def test_the_presets_are_the_papers():
    paper, released = imagenet.PRESETS["paper"], imagenet.PRESETS["released"]
    assert paper.lambdas == (1e4, 3.162e4, 1e5, 3.162e5, 1e6, 3.162e6, 1e7)
    assert (paper.epochs, paper.learning_rate, paper.momentum) == (35, 1e-4, 0.99)
    assert paper.epochs_per_decay is None  # on a plateau
    assert (released.epochs, released.learning_rate, released.momentum) == (20, 1e-5, 0.9)
    assert released.epochs_per_decay == 15
    for preset in (paper, released):
        assert preset.batch_size == 32
        assert preset.examples_per_mean == 16
        assert preset.penalty_scale == "batch_mean"
        assert preset.size == 256
        assert preset.shorter_side == (258, 512)
        assert preset.weights == "imagenet"
        assert preset.bn_momentum == 0.999
        assert preset.weight_decay == 1e-4
        assert preset.evaluated == preset.attacked == 1000
        assert preset.carlini_wagner_steps == published.CARLINI_WAGNER["steps"]
