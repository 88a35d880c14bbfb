"""The command `tfrobust` as a process of its own, and usage errors of any command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def tfrobust(*arguments, code=None, **options):
    """The finished process of the command, or of Python code, started in another folder."""
    command = ["-c", code] if code else ["-m", "tfrobust", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name in ("TF_CPP_MIN_LOG_LEVEL", "CUDA_VISIBLE_DEVICES"):  # what conftest sets
        environment.pop(name, None)
    return subprocess.run(
        [sys.executable, *command],
        **{"cwd": "/", "env": environment, "capture_output": True, "text": True, **options},
    )


def usage_error(main, arguments, capsys):
    """What a command says of arguments that it does not take; its status is 2."""
    with pytest.raises(SystemExit) as end:
        main([*map(str, arguments)])
    assert end.value.code == 2
    captured = capsys.readouterr()
    return captured.err + captured.out
