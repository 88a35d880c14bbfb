"""Results carry the settings that made them; damaged ones and those of others are refused."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from helpers.processes import Child

from tfrobust.locks import FolderInUseError, FolderLostError
from tfrobust.report import Results, Run, RunFolderError

FILES = ("a.json", "b.json", "t.parquet", "x.npz")


@dataclasses.dataclass(frozen=True)
class Settings:
    seed: int = 0


def fill(run):
    """Every kind of result, made or read."""
    frame = pd.DataFrame(
        {"x": np.arange(500) / 7, "name": [f"image {k}" for k in range(500)], "ok": [True] * 500}
    )
    frame.loc[3, "x"], frame.loc[5, "name"] = np.nan, None
    return (
        run.json_step("a.json", lambda: {"accuracy": 0.25, "rows": [1, 2]}),
        run.json_step("b.json", lambda: [1.5, None, "x"]),
        run.frame_step("t.parquet", lambda: frame),
        run.arrays_step("x.npz", lambda: {"map": np.arange(600.0), "name": np.array("a")}),
    )


def read(results):
    return (
        results.read_json("a.json"),
        results.read_json("b.json"),
        results.read_frame("t.parquet"),
        results.read_arrays("x.npz"),
    )


def test_results_are_read_without_the_settings(tmp_path):
    made = fill(Run(tmp_path, Settings()))
    assert made[:2] == ({"accuracy": 0.25, "rows": [1, 2]}, [1.5, None, "x"])
    assert made[2].attrs == {}
    found = read(Results.open(tmp_path))
    assert found[:2] == made[:2]
    pd.testing.assert_frame_equal(found[2], made[2])
    assert {name: values.tolist() for name, values in found[3].items()} == {
        name: values.tolist() for name, values in made[3].items()
    }


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("deleted", ["run.json", None])
def test_results_of_other_settings_are_refused_by_name(tmp_path, name, deleted):
    fill(Run(tmp_path / "old", Settings()))
    if deleted:  # as the message of a damaged record says
        (tmp_path / "old" / deleted).unlink()
        run = Run(tmp_path / "old", Settings(seed=7))
        for other in FILES:
            if other != name:
                (tmp_path / "old" / other).unlink()
    else:  # copied
        run = Run(tmp_path / "new", Settings(seed=7))
        shutil.copy(tmp_path / "old" / name, tmp_path / "new" / name)
    with pytest.raises(RunFolderError, match=rf"{name} is the result of other settings"):
        fill(run)


def test_a_record_that_is_made_again_with_the_same_settings_keeps_the_results(tmp_path):
    fill(Run(tmp_path, Settings()))
    (tmp_path / "run.json").unlink()
    run = Run(tmp_path, Settings())
    assert read(run)[0] == {"accuracy": 0.25, "rows": [1, 2]}


def test_results_of_unknown_settings_are_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"accuracy": 1.0}')
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "t.parquet")
    np.savez(tmp_path / "x.npz", map=np.zeros(3))
    run = Run(tmp_path, Settings())
    for step, name in ((run.json_step, "a.json"), (run.frame_step, "t.parquet")):
        with pytest.raises(RunFolderError, match=rf"{name} is the result of unknown settings"):
            step(name, dict)
    with pytest.raises(RunFolderError, match=r"x\.npz is the result of unknown settings"):
        run.arrays_step("x.npz", dict)


def test_runs_of_earlier_versions_are_read(tmp_path):
    """Their record does not say that results carry a seal."""
    fill(Run(tmp_path, Settings()))
    record = json.loads((tmp_path / "run.json").read_text())
    del record["results"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "a.json").write_text('{"accuracy": 1.0}')
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "t.parquet")
    run = Run(tmp_path, Settings())
    assert run.json_step("a.json", dict) == {"accuracy": 1.0}
    assert run.frame_step("t.parquet", dict)["x"].tolist() == [1]


@pytest.mark.parametrize("damage", ['{"settings": {"seed": 7}', "[]", '{"settings": 3}', "", "{}"])
def test_a_damaged_record_is_named(tmp_path, damage):
    fill(Run(tmp_path, Settings()))
    (tmp_path / "run.json").write_text(damage)
    for opened in (lambda: Run(tmp_path, Settings(seed=7)), lambda: Results.open(tmp_path)):
        with pytest.raises(RunFolderError, match=r"run\.json cannot be read .* Delete it"):
            opened()


def test_one_changed_setting_in_the_record_is_damage(tmp_path):
    fill(Run(tmp_path, Settings()))
    text = (tmp_path / "run.json").read_text()
    (tmp_path / "run.json").write_text(text.replace('"seed": 0', '"seed": 7'))
    with pytest.raises(RunFolderError, match="have changed"):
        Run(tmp_path, Settings(seed=7))


@pytest.mark.parametrize("name", FILES)
def test_no_damaged_byte_is_taken_silently(tmp_path, name):
    run = Run(tmp_path, Settings())
    fill(run)
    reader = {"json": run.read_json, "parquet": run.read_frame, "npz": run.read_arrays}
    reader, path = reader[name.split(".")[1]], tmp_path / name
    whole, before = path.read_bytes(), reader(name)
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.choice(len(whole), min(120, len(whole)), replace=False):
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            after = reader(name)
        except RunFolderError as error:  # anything else is a traceback
            assert name in str(error)
            refused += 1
            continue
        same = (
            after.equals(before)
            if isinstance(before, pd.DataFrame)
            else repr(after) == repr(before)
        )
        assert same
    assert refused > 20


@pytest.mark.parametrize("name", FILES)
def test_truncated_and_empty_files(tmp_path, name):
    run = Run(tmp_path, Settings())
    fill(run)
    whole = (tmp_path / name).read_bytes()
    for size in (0, 1, len(whole) // 2, len(whole) - 3):
        (tmp_path / name).write_bytes(whole[:size])
        with pytest.raises(RunFolderError, match=rf"{name} cannot be read .* Delete it"):
            fill(run)


def test_pages_of_tables_have_checksums(tmp_path):
    import pyarrow.parquet as pq

    fill(Run(tmp_path, Settings()))
    whole = (tmp_path / "t.parquet").read_bytes()
    damaged = bytearray(whole)
    damaged[200] ^= 1  # in the first page
    (tmp_path / "t.parquet").write_bytes(damaged)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(tmp_path / "t.parquet", page_checksum_verification=True)


def test_a_folder_that_is_deleted_during_a_run_is_not_made_again(tmp_path):
    run = Run(tmp_path / "run", Settings())

    def delete():
        shutil.rmtree(tmp_path / "run")
        return {"accuracy": 1.0}

    with pytest.raises(FolderLostError, match="deleted"):
        run.json_step("member/a.json", delete)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_another_run_has_taken_is_left_alone(tmp_path):
    run = Run(tmp_path / "run", Settings())
    shutil.rmtree(tmp_path / "run")
    Run(tmp_path / "run", Settings(seed=7))
    with pytest.raises(FolderLostError, match="deleted"):
        run.json_step("a.json", dict)
    assert not (tmp_path / "run" / "a.json").exists()


def test_a_deleted_record_ends_the_run(tmp_path):
    run = Run(tmp_path, Settings())
    (tmp_path / "run.json").unlink()
    with pytest.raises(FolderLostError, match=r"run\.json was deleted"):
        run.json_step("a.json", dict)


def _open(folder):
    try:
        Run(folder, Settings())
    except FolderInUseError:
        raise SystemExit(7) from None


def test_another_process_is_kept_out(tmp_path):
    run = Run(tmp_path, Settings())
    for expected in (7, 0):
        assert Child(_open, tmp_path).wait() == expected
        run.close()


def test_columns_that_parquet_changes_are_no_damage(tmp_path):
    run = Run(tmp_path, Settings())
    frame = pd.DataFrame(
        {
            "when": pd.to_datetime(["2026-01-01", None]).astype("datetime64[s]"),
            "list": [[1, 2], None],
            "kind": pd.Categorical(["a", "b"]),
            "count": pd.array([1, None], "Int64"),
        }
    )
    run.frame_step("t.parquet", lambda: frame)
    assert len(run.read_frame("t.parquet")) == 2
