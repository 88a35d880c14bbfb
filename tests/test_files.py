"""Files are whole or absent, whatever interrupts the writing."""

import errno
import os
import zipfile
from pathlib import Path

import pytest

from tfrobust.files import atomic_path, check_archive, writable_folder

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_whole(tmp_path):
    target = tmp_path / "result.json"
    with atomic_path(target) as path:
        path.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert names(tmp_path) == ["result.json"]


def test_the_old_file_stays_until_the_block_ends(tmp_path):
    target = tmp_path / "result.json"
    target.write_text("old")
    with atomic_path(target) as path:
        path.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["result.json"]


def test_a_string_is_a_path(tmp_path):
    with atomic_path(str(tmp_path / "a.npz")) as path:
        path.write_bytes(b"1")
    assert names(tmp_path) == ["a.npz"]


@pytest.mark.parametrize("name", ["model.weights.h5", "model.keras", "table.csv", "noending"])
def test_the_temporary_path_is_beside_the_file_with_all_its_suffixes(tmp_path, name):
    with atomic_path(tmp_path / name) as path:
        assert path.parent.parent == tmp_path
        assert path.name == name
        path.write_text("x")
        assert list(tmp_path.glob(f"*{path.suffix}")) == [path.parent][: not path.suffix]
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt(), MemoryError()])
def test_an_error_in_the_block_leaves_the_old_file(tmp_path, error):
    target = tmp_path / "result.json"
    target.write_text("old")
    with pytest.raises(type(error)) as caught, atomic_path(target) as path:
        path.write_text("half")
        raise error
    assert caught.value is error
    assert target.read_text() == "old"
    assert names(tmp_path) == ["result.json"]


def test_an_error_before_the_first_byte(tmp_path):
    with pytest.raises(ValueError, match="early"), atomic_path(tmp_path / "a.json"):
        raise ValueError("early")
    assert names(tmp_path) == []


def assert_full_disk_is_reported(caught, target):
    text = str(caught.value)
    assert f"could not write {target}" in text
    assert "No space left on device" in text
    assert "What was there before is unchanged." in text
    assert target.read_text() == "old"
    assert names(target.parent) == [target.name]


def test_a_disk_that_fills_while_the_block_writes(tmp_path, monkeypatch):
    target = tmp_path / "result.json"
    target.write_text("old")

    def half(path, text):
        with path.open("w") as file:
            file.write(text[: len(text) // 2])
        raise FULL

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError) as caught, atomic_path(target) as path:
        path.write_text("new text")
    assert_full_disk_is_reported(caught, target)
    assert caught.value.__cause__ is FULL


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_disk_that_fills_when_the_file_is_put_in_place(tmp_path, monkeypatch, function):
    target = tmp_path / "result.json"
    target.write_text("old")

    def full(*arguments, **options):
        raise FULL

    monkeypatch.setattr(os, function, full)
    with pytest.raises(OSError) as caught, atomic_path(target) as path:
        path.write_text("new")
    assert_full_disk_is_reported(caught, target)


def test_the_bytes_reach_the_disk_before_the_name(tmp_path, monkeypatch):
    """After a power cut the name must not point at an empty file."""
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), replace(*paths)))
    with atomic_path(tmp_path / "a.json") as path:
        path.write_text("x")
    assert calls == ["fsync", "replace"]


def test_a_block_that_writes_nothing(tmp_path):
    target = tmp_path / "result.json"
    target.write_text("old")
    with pytest.raises(OSError, match="could not write"), atomic_path(target):
        pass
    assert target.read_text() == "old"


def test_a_missing_folder(tmp_path):
    target = tmp_path / "missing" / "result.json"
    with pytest.raises(OSError, match=f"could not write {target}"), atomic_path(target) as path:
        path.write_text("x")


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "taken").write_text("a file")
    target = tmp_path / "taken" / "result.json"
    with pytest.raises(OSError, match=f"could not write {target}"), atomic_path(target) as path:
        path.write_text("x")


def test_writable_folder_makes_the_folder_and_its_parents(tmp_path):
    folder = writable_folder(str(tmp_path / "a" / "b"))
    assert folder == tmp_path / "a" / "b"
    assert folder.is_dir()
    assert names(folder) == []
    assert writable_folder(folder) == folder


@pytest.mark.parametrize("below", ["taken", "taken/run", "taken/run/1"])
def test_a_folder_that_cannot_be_made(tmp_path, below):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OSError) as caught:
        writable_folder(tmp_path / below)
    text = str(caught.value)
    assert f"cannot write to the folder {tmp_path / below}: " in text
    assert "Choose another folder, or make this one writable." in text
    assert (tmp_path / "taken").read_text() == "a file"


def test_a_folder_without_write_permission(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write anywhere")
    with pytest.raises(OSError, match=r"cannot write to the folder .*Permission denied"):
        writable_folder(folder)


def test_a_folder_on_a_full_disk(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise FULL

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(OSError, match=r"cannot write to the folder .*No space left on device"):
        writable_folder(tmp_path)


def test_archives_that_would_fill_the_memory(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(2**20))
    check_archive(path)  # a thousand times its size, but small
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in range(5):
            with archive.open(f"zeros{part}", "w") as file:
                for _ in range(60):
                    file.write(bytes(2**20))
    with pytest.raises(ValueError, match=rf"{path} would expand from \d+ to 314572800 bytes"):
        check_archive(path)
