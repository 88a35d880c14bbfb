"""One process at a time in a folder; what killed ones leave is removed."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from tfrobust import locks
from tfrobust.errors import UnlockedFolderWarning, WaitingForFolderWarning
from tfrobust.files import atomic_path
from tfrobust.locks import FolderInUseError, FolderLock, FolderLostError, shared_with_members

# holds a folder until it is killed; says so
HOLDER = """
import sys, time
from tfrobust.locks import FolderLock, shared_with_members
if sys.argv[2] == "member":
    with shared_with_members():
        lock = FolderLock.of(sys.argv[1], cohort=True)
else:
    lock = FolderLock.of(sys.argv[1], cohort=True)
    if sys.argv[2] == "cohort":
        lock.share()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(locks, "_PATIENCE", 0.1)


@pytest.fixture
def hold():
    started = []

    def start(folder, kind="alone"):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder), kind], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_another_process_is_refused_by_name_until_it_dies(tmp_path, hold):
    process = hold(tmp_path)
    with pytest.raises(FolderInUseError, match=rf"{tmp_path} is in use by process {process.pid} "):
        FolderLock.of(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / ".lock").exists()
    lock = FolderLock.of(tmp_path)
    lock.check()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_calls_of_one_process_share_a_lock_but_one_call_is_alone(tmp_path, hold):
    first, second = FolderLock.of(tmp_path), FolderLock.of(tmp_path)
    first.release()
    second.check()
    with FolderLock.for_one_call(tmp_path) as lock:
        assert lock is second
        refused = []

        def other():
            with pytest.raises(FolderInUseError, match="another call in this process"):
                FolderLock.for_one_call(tmp_path).__enter__()
            refused.append(True)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert refused
    second.check()
    second.release()
    hold(tmp_path)  # is let in


def test_members_of_a_cohort_share_and_keep_others_out(tmp_path, hold):
    hold(tmp_path, "cohort")
    member = hold(tmp_path, "member")
    with shared_with_members():
        lock = FolderLock.of(tmp_path, cohort=True)
    with pytest.raises(FolderLostError):  # another folder of the same name
        _replaced(lock, tmp_path)
    assert member.poll() is None


def _replaced(lock, folder):
    (folder / ".lock").rename(folder / "other")
    try:
        lock.check()
    finally:
        (folder / "other").rename(folder / ".lock")
        lock.release()


def test_no_one_enters_while_a_member_is_left(tmp_path, hold):
    client, member = hold(tmp_path, "cohort"), hold(tmp_path, "member")
    client.kill()
    client.wait()
    with pytest.raises(FolderInUseError):
        FolderLock.of(tmp_path, cohort=True)
    member.kill()
    member.wait()
    FolderLock.of(tmp_path, cohort=True).release()


def test_a_member_waits_for_a_folder_of_one_process(tmp_path, hold):
    process = hold(tmp_path)
    timer = threading.Timer(0.5, process.kill)
    timer.start()
    start = time.monotonic()
    with (
        pytest.warns(WaitingForFolderWarning, match=f"waiting for {tmp_path}"),
        shared_with_members(),
        FolderLock.for_one_call(tmp_path) as lock,
    ):
        lock.check()
    assert time.monotonic() - start > 0.4


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_is_deleted_is_lost(tmp_path, again):
    folder = tmp_path / "run"
    lock = FolderLock.of(folder)
    shutil.rmtree(folder)
    other = FolderLock.of(folder) if again else None
    with pytest.raises(FolderLostError, match="was deleted or replaced"):
        lock.check()
    lock.release()
    if again:
        other.check()
        other.release()


def test_a_forked_process_does_not_hold_the_folder(tmp_path):
    lock = FolderLock.of(tmp_path)
    child = os.fork()
    if child == 0:
        os._exit(1 if lock.is_held else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    lock.release()


def test_leftovers_of_killed_writers_are_removed_and_never_found_by_patterns(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / ".partial-123-model.keras").write_text("of an earlier version")
    child = os.fork()
    if child == 0:
        with atomic_path(tmp_path / "models" / "model.keras") as path:
            path.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(list((tmp_path / "models").iterdir())) == 1
    assert list((tmp_path / "models").glob("*.keras")) == []
    FolderLock.of(tmp_path).release()
    assert [path.name for path in tmp_path.rglob("*")] == ["models"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_storage_without_locks_is_named(tmp_path, monkeypatch, number):
    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    with pytest.warns(UnlockedFolderWarning, match=f"{tmp_path} offers no file locks"):
        lock = FolderLock.of(tmp_path)
    lock.check()
    lock.release()


def test_a_system_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    with pytest.warns(UnlockedFolderWarning, match="this system has none"):
        lock = FolderLock.of(tmp_path)
    lock.check()
    lock.release()
