"""Run folders: steps made once, settings held, damage named."""

import contextlib
import dataclasses
import hashlib

import numpy as np
import pandas as pd
import pytest

from tfrobust.report import Run, RunFolderError, versions


@dataclasses.dataclass(frozen=True)
class Settings:
    weights: tuple[float, ...] = (1.0, 2.0)
    seed: int = 0


def test_a_step_is_made_once(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return {"value": np.float32(1.5), "rows": np.arange(3)}

    first = Run(tmp_path, Settings()).json_step("a/b.json", make)
    second = Run(tmp_path, Settings()).json_step("a/b.json", make)
    assert first == second == {"value": 1.5, "rows": [0, 1, 2]}
    assert len(calls) == 1


def test_tables_come_back_as_they_were(tmp_path):
    frame = pd.DataFrame(
        {
            "distance": np.array([1.5, np.inf, np.nan], np.float32),
            "label": np.array([1, 2, 3], np.int32),
            "found": [True, False, True],
        }
    )
    run = Run(tmp_path, Settings())
    pd.testing.assert_frame_equal(run.frame_step("t.parquet", lambda: frame), frame)
    again = run.frame_step("t.parquet", lambda: pytest.fail("made twice"))
    pd.testing.assert_frame_equal(again, frame)


def test_a_step_that_fails_leaves_nothing(tmp_path):
    run = Run(tmp_path, Settings())

    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.frame_step("t.parquet", fail)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "run.json"]


def test_the_record_holds_settings_and_versions(tmp_path):
    record = Run(tmp_path, Settings()).record
    assert record["settings"] == {"weights": [1.0, 2.0], "seed": 0}
    assert {"python", "tensorflow", "keras", "machine"} <= record["versions"].keys()
    assert record["versions"] == versions()


def test_other_settings_are_refused(tmp_path):
    Run(tmp_path, Settings())
    Run(tmp_path, Settings())
    with pytest.raises(RunFolderError, match="a run with seed = 0, now 1"):
        Run(tmp_path, Settings(seed=1))


def test_files_are_held_by_their_contents(tmp_path):
    weights = tmp_path / "w.keras"
    weights.write_bytes(b"one")
    run = Run(tmp_path / "run", Settings(), files={"weights": weights})
    assert run.record["files"]["weights"] == hashlib.sha256(b"one").hexdigest()
    Run(tmp_path / "run", Settings(), files={"weights": weights})
    weights.write_bytes(b"two")
    with pytest.raises(RunFolderError, match=r"weights = .*w\.keras had other contents"):
        Run(tmp_path / "run", Settings(), files={"weights": weights})
    # a run from before contents were held
    Run(tmp_path / "old", Settings())
    with pytest.raises(RunFolderError, match="may have had other contents"):
        Run(tmp_path / "old", Settings(), files={"weights": weights})
    with pytest.raises(FileNotFoundError):
        Run(tmp_path / "new", Settings(), files={"weights": tmp_path / "none.keras"})
    assert not (tmp_path / "new").exists()


def test_damaged_records_are_named(tmp_path):
    run = Run(tmp_path, Settings())
    (tmp_path / "s.json").write_text('{"a": ')
    with pytest.raises(RunFolderError, match=r"s\.json cannot be read .* Delete it"):
        run.json_step("s.json", dict)
    (tmp_path / "t.parquet").write_bytes(b"PAR1 half of")
    with pytest.raises(RunFolderError, match=r"t\.parquet cannot be read .* Delete it"):
        run.frame_step("t.parquet", pd.DataFrame)
    run.arrays_step("a.npz", lambda: {"x": np.arange(100)})
    whole = (tmp_path / "a.npz").read_bytes()
    for place in range(30, len(whole) - 60, 7):  # headers, compressed data and directory
        damaged = bytearray(whole)
        damaged[place : place + 3] = b"\xff\xff\xff"
        (tmp_path / "a.npz").write_bytes(damaged)
        with contextlib.suppress(RunFolderError):  # anything else is a traceback
            np.testing.assert_array_equal(run.arrays_step("a.npz", dict)["x"], np.arange(100))
    (tmp_path / "a.npz").write_bytes(whole[:-40])
    with pytest.raises(RunFolderError, match=r"a\.npz cannot be read .* Delete it"):
        run.arrays_step("a.npz", dict)
    (tmp_path / "run.json").write_text("")
    with pytest.raises(RunFolderError, match=r"run\.json"):
        Run(tmp_path, Settings())


def test_an_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to the folder"):
        Run(tmp_path / "file" / "run", Settings())
