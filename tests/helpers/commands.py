"""The command `tfrobust` as a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

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
