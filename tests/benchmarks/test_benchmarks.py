"""Benchmarks fail like commands do: in one line, before anything is computed."""

import runpy
import sys

import numpy as np
import pytest
from helpers.processes import Child

from benchmarks import bounds, sketch
from tfrobust.commands import run


@pytest.mark.slow  # commands are started as processes in the usual tests
def test_missing_data_is_one_line(tmp_path):
    child = Child(run_as_script, "benchmarks.bounds", "--data-dir", str(tmp_path))
    assert child.wait() == 1
    (line,) = [line for line in child.printed().splitlines() if "error" in line.lower()]
    assert line.startswith(f"error: mnist is not prepared in {tmp_path} ")


def run_as_script(module, *arguments):
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (bounds.main, ["--data", "letters"], "unknown data set 'letters'"),
        (bounds.main, ["--data", "digits", "--images", "0"], "images must be .* at least 1, got 0"),
        (bounds.main, ["--data", "digits", "--model", "a.keras"], "no model file a.keras"),
        (sketch.main, ["--size", "8"], "size must be .* at least 32, got 8"),
        (sketch.main, ["--images", "33"], "images must be at most 32, got 33"),
        (sketch.main, [], "holds 0 images, 32 are needed"),
    ],
)
def test_what_a_user_can_mend(main, arguments, message, tmp_path, monkeypatch):
    monkeypatch.setenv("TFROBUST_DATA_DIR", str(tmp_path))
    with pytest.raises(SystemExit, match=f"^error: .*({message})"):
        run(lambda: main(arguments))


def test_the_table_of_bounds():
    """Two sets of made-up bounds on three images, one of which no attack changed."""
    distance = np.array([1.0, 2.0, np.inf])
    nearest = np.array([1.0, 1.5, np.inf])
    results = [
        bounds.Measured("printed (thesis)", np.array([2.0, 2.0, 2.0]), 1.0),
        bounds.Measured(bounds.GLOBAL, np.array([0.5, 0.5, 9.0]), 30.0),
        bounds.Measured(bounds.LOCAL, np.array([0.5, 1.6, 9.0]), 30.0),
    ]
    table = bounds.table(results, distance, nearest, forward=1.0)
    assert table["median bound / CW"].tolist() == [1.5, 0.375, 0.65]
    assert table["ms per image"].tolist() == pytest.approx([1e3 / 3, 1e4, 1e4])
    assert bounds.missed_limits(results, nearest, 1.0) == [
        "certified, global: more than 10 forward passes",
        "certified, tightened: 1 bounds exceed an attack's distance",
    ]
