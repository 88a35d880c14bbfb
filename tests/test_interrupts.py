"""SIGTERM in the middle of training, an attack and a step of a run folder, and what is left."""

import contextlib
import dataclasses
import os
import signal
import threading

import numpy as np
import pandas as pd
import pytest
from helpers.small_training import run_to, small_data, small_model, weights_of

from tfrobust import minimal
from tfrobust.interrupts import Terminated, interruptible
from tfrobust.report import Run


@contextlib.contextmanager
def terminated(after):
    """SIGTERM `after` seconds; the block has to end by it."""
    main = threading.main_thread().ident
    timer = threading.Timer(after, signal.pthread_kill, (main, signal.SIGTERM))
    with interruptible() as received, pytest.raises(Terminated):
        timer.start()
        yield
        timer.join()
    assert received.number == signal.SIGTERM


def test_training_resumes_to_the_weights_of_an_uninterrupted_run(tmp_path):
    epochs = 4
    whole, _ = run_to(None, epochs)
    notes = []

    def terminate(record, model):
        """Once training is under way: in its next step, or between two of them."""
        if not notes:
            notes.append(record["epoch"])
            os.kill(os.getpid(), signal.SIGTERM)

    with interruptible(), pytest.raises(Terminated):
        run_to(tmp_path, epochs, callbacks=[terminate])
    assert notes == [1]
    assert not list(tmp_path.rglob(".partial*"))
    resumed, history = run_to(tmp_path, epochs)
    assert len(history.records) == epochs
    for one, other in zip(weights_of(whole), weights_of(resumed), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("attack", ["gradient", "carlini_wagner"])
def test_an_attack_ends_soon(attack):
    model, (images, _) = small_model(), small_data(30)
    options = {"steps": 10**6} if attack == "carlini_wagner" else {}
    with terminated(1.0):
        while True:
            minimal(model, images, attack, value_range=(-9, 9), **options)


@dataclasses.dataclass(frozen=True)
class Settings:
    seed: int = 0


def test_a_step_leaves_all_or_nothing(tmp_path, monkeypatch):
    run = Run(tmp_path, Settings())
    run.json_step("first.json", lambda: 1)

    table = pd.DataFrame({"a": [1]})

    def half(frame, path, **_):
        """Written in the middle of the signal."""
        path.write_bytes(b"half")
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch, interruptible(), pytest.raises(Terminated):
        patch.setattr(pd.DataFrame, "to_parquet", half)
        run.frame_step("second.parquet", lambda: table)
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["first.json", "run.json"]
    pd.testing.assert_frame_equal(run.frame_step("second.parquet", lambda: table), table)


def test_other_threads_change_no_handlers():
    seen = []

    def use():
        with interruptible():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
