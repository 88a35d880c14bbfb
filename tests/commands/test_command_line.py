"""The command `tfrobust` as users start it: help, wrong command lines, and what is on stderr."""

import importlib
import json
import os
import signal
import tomllib
from pathlib import Path

import pytest
from helpers.commands import tfrobust

from tfrobust.commands import catalogue, dispatch, main, run
from tfrobust.errors import InputError

ROOT = Path(__file__).parents[2]
CATALOGUE = """
[[experiment]]
name = "mnist"
study = "Etmann 2019"
command = "python -m experiments.etmann2019.mnist"
what = "Small networks."

[[experiment.preset]]
name = "demo"
needs = "nothing"
cost = "2 minutes"

[[experiment.preset]]
name = "paper"
needs = "MNIST"
cost = "a day"

[[experiment]]
name = "other"
study = "Peck 2017"
command = "python -m experiments.peck2017"
what = "Bounds."
"""


def one_line(done, status):
    """The one line on stderr of a process that ended with that status."""
    assert done.returncode == status
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def test_the_console_script_is_the_main_function():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, function = scripts["tfrobust"].split(":")
    assert getattr(importlib.import_module(module), function) is main


def test_without_arguments_help_is_an_error_message():
    done = tfrobust()
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: tfrobust COMMAND" in done.stderr
    asked = tfrobust("--help")
    assert (asked.returncode, asked.stdout, asked.stderr) == (0, done.stderr, "")
    for name in dispatch.COMMANDS:
        assert f"\n  {name} " in asked.stdout


def test_a_wrong_command_names_the_nearest():
    line = one_line(tfrobust("mesure"), 2)
    assert line.startswith("error: no command 'mesure'; there are measure, ")
    assert line.endswith(" Did you mean 'measure'?")
    assert "Did you mean" not in one_line(tfrobust("xyz"), 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("measure", "--model", "resnet50", "--images", "nowhere"), "there is no folder nowhere"),
        (("rank", "a.keras", "b.keras", "--data", "digits"), "there is no model file a.keras"),
        (
            ("evaluate", "a.keras", "--data", "digits", "--epsilon", "1"),
            "there is no model file a.keras",
        ),
        (("list", "--experiments", "nowhere"), "there is no catalogue file nowhere/catalogue.toml"),
    ],
    ids=lambda value: value[0],
)
def test_what_is_not_there_is_one_line(arguments, message):
    assert one_line(tfrobust(*arguments), 1) == f"error: {message}"


@pytest.mark.parametrize("name", dispatch.COMMANDS)
def test_help_and_checks_need_no_tensorflow(name):
    code = (
        "import sys; from tfrobust.commands import main\n"
        f"try: main([{name!r}, '--help'])\n"
        "finally: print('tensorflow' in sys.modules, 'keras' in sys.modules)"
    )
    done = tfrobust(code=code)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: tfrobust {name}" in done.stdout
    assert done.stdout.endswith("False False\n")


def test_missing_settings_are_an_error():
    done = tfrobust("rank", "a.keras")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--data" in done.stderr


def test_the_version():
    assert tfrobust("--version").stdout.startswith("tfrobust ")


INTERRUPTED = (
    "\ninterrupted; a run folder keeps the steps that are finished, and the same command resumes "
    "after them\n"
)


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_ctrl_c_and_sigterm_are_one_line(name, status):
    code = (
        "import os, signal, time; from tfrobust.commands import run\n"
        # ignored where the tests themselves run in the background of a shell
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        f"run(lambda: (os.kill(os.getpid(), signal.{name}), time.sleep(9)))"
    )
    done = tfrobust(code=code)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", INTERRUPTED)


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupt_that_tensorflow_turns_into_another_error(name, status, capsys):
    """As pybind11 does where a signal comes while it makes an exception of its own."""

    def main():
        try:
            signal.raise_signal(getattr(signal, name))
        except KeyboardInterrupt as error:
            raise RuntimeError("MISMATCH of original and normalized exception types") from error

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as stop:
            run(main)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert (stop.value.code, capsys.readouterr().err) == (status, INTERRUPTED)


def test_sigterm_is_left_to_a_program_that_handles_or_ignores_it():
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        run(lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        run(lambda: None)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_a_closed_pipe_is_no_error():
    code = (
        "from tfrobust.commands import run\n"
        "run(lambda: [print(k, flush=True) for k in range(100_000)])"
    )
    done = tfrobust(
        code=f"import subprocess, sys\np = subprocess.Popen([sys.executable, '-c', "
        f"{code!r}], stdout=subprocess.PIPE, stderr=subprocess.PIPE)\n"
        "p.stdout.readline(); p.stdout.close()\n"
        "print(p.stderr.read(), p.wait())"
    )
    assert done.stdout == "b'' 141\n"


def test_errors_are_one_line(capsys):
    def fail():
        raise InputError("first\n   second")

    with pytest.raises(SystemExit) as stop:
        run(fail)
    assert stop.value.code == "error: first second"


def test_other_exceptions_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


LOUD = r"""
import os, sys
sys.path.insert(0, {folder!r})
from tfrobust.commands import import_tensorflow
import_tensorflow()
os.write(2, b"I0000 00:00:1 later.cc:1] after the import\n")
"""
FAKE = r"""
import os
os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called\n")
os.write(2, b"I0000 00:00:1795489347.8 1 port.cc:153] oneDNN custom operations are on.\n")
os.write(2, b"To enable the following instructions: AVX2, rebuild TensorFlow\n")
os.write(2, b"E0000 00:00:1795489375.5 1 cuda_platform.cc:52] failed call to cuInit: INTERNAL\n")
os.write(2, b"E0000 00:00:1795489375.5 1 other.cc:52] a real error\n")
os.write(2, b"F0000 00:00:1795489375.5 1 cpu.cc:1] lacks \xff instructions\n")
"""


@pytest.mark.parametrize("end", ["class config: list_physical_devices = lambda: 0", "os.abort()"])
def test_only_noise_is_left_out_of_stderr(tmp_path, end):
    """Whether the import succeeds, or TensorFlow aborts the process."""
    (tmp_path / "tensorflow.py").write_text(FAKE + end)
    done = tfrobust(code=LOUD.format(folder=str(tmp_path)), text=False)
    lines = done.stderr.splitlines()
    assert b"other.cc:52] a real error" in lines[0]
    assert b"lacks \xff instructions" in lines[1]
    if "abort" in end:
        assert done.returncode != 0
        assert len(lines) == 2
    else:
        assert done.returncode == 0
        assert lines[2:] == [b"I0000 00:00:1 later.cc:1] after the import"]


def test_a_failing_import_of_tensorflow_keeps_its_traceback(tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('no such library')")
    done = tfrobust(code=LOUD.format(folder=str(tmp_path)))
    assert done.returncode == 1
    assert done.stderr.endswith("ImportError: no such library\n")


@pytest.mark.slow  # `measure` started as a process is silent in the usual tests
def test_tensorflow_itself_is_silent():
    code = (
        "from tfrobust.commands import import_tensorflow\nimport_tensorflow()\n"
        "import tensorflow as tf\nprint(float(tf.constant(1.0) + 1))"
    )
    done = tfrobust(code=code)
    assert (done.stdout, done.stderr) == ("2.0\n", "")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "catalogue.toml").write_text(CATALOGUE)
    return tmp_path


def test_the_list_of_experiments(folder, capsys):
    main(["list", "--experiments", str(folder)])
    first, second = capsys.readouterr().out.split("\n\n")
    assert first.splitlines() == [
        "mnist (Etmann 2019)",
        "  Small networks.",
        "  python -m experiments.etmann2019.mnist",
        "    demo   2 minutes; needs nothing",
        "    paper  a day; needs MNIST",
    ]
    assert second.startswith("other (Peck 2017)")


def test_the_list_as_json(folder, capsys):
    main(["list", "--experiments", str(folder), "--json"])
    first, second = json.loads(capsys.readouterr().out)
    assert set(first) == {"name", "study", "command", "what", "presets"}
    assert first["presets"][1] == {"name": "paper", "needs": "MNIST", "cost": "a day"}
    assert second["presets"] == []


def test_where_experiments_are_looked_for(folder, tmp_path, monkeypatch, capsys):
    installed = tmp_path / "lib" / "tfrobust" / "commands" / "catalogue.py"
    monkeypatch.setattr(catalogue, "__file__", str(installed))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="they come with the repository, not with the installed"):
        main(["list"])
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "catalogue.toml").write_text(CATALOGUE)
    main(["list"])
    assert "Peck 2017" in capsys.readouterr().out
    beside = tmp_path / "lib" / "experiments"
    beside.mkdir(parents=True)
    (beside / "catalogue.toml").write_text(CATALOGUE.replace("Peck", "Etmann"))
    main(["list"])
    assert "Peck 2017" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("name = = 3", "is no TOML file"),
        (CATALOGUE.replace('cost = "a day"\n', ""), "paper has no text 'cost'"),
        (CATALOGUE.replace('what = "Bounds."', "what = 3"), "other has no text 'what'"),
    ],
)
def test_a_malformed_catalogue(changed, message, tmp_path):
    (tmp_path / "catalogue.toml").write_text(changed)
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        main(["list", "--experiments", str(tmp_path)])
