"""experiments/common: command lines, a cohort whose members fail, pages of unfinished cohorts."""

import dataclasses
import functools
import json
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from experiments.common import experiment as common
from experiments.common.claims import judged
from experiments.common.command_line import parse
from experiments.common.experiment import Experiment, execute
from experiments.common.members import Member
from experiments.common.page import Drawing, Report, Table
from tfrobust.errors import InputError
from tfrobust.training import NonFiniteLossError


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of an experiment that computes next to nothing."""

    values: tuple[float, ...] = (1.0, 2.0, 3.0)
    """One member each."""
    file: str | None = None
    """Whose contents results depend on."""


ABOUT = {"demo": "Small.", "paper": "Large."}
PRESETS = {"demo": Settings(), "paper": Settings(values=(4.0,))}


def members(settings):
    return [Member(f"value {v:g}", f"m/{v:g}", {"value": v}) for v in settings.values]


def steps(task, member):
    value = member.settings["value"]
    task.run.json_step(f"{member.folder}/first.json", lambda: value)
    yield
    if value == task.data["fails_at"]:
        raise NonFiniteLossError("loss is not finite in epoch 2, step 3 of 9.")
    task.run.json_step(f"{member.folder}/second.json", lambda: value**2)
    yield


def report(task, progress, pages):
    squares = {m.name: task.run.read_json(f"{m.folder}/second.json") for m in progress.finished}
    pages.append(squares)
    table = pd.DataFrame({"name": list(squares), "square": list(squares.values())})
    grows = None if len(squares) < 2 else list(squares.values()) == sorted(squares.values())
    return Report(
        title="Squares",
        lead="A lead.",
        tables=[Table("All squares", "Text.", table)],
        drawings=[Drawing("Figure 1", "Empty.", "one", Figure)] if squares else [],
        claims=[judged("Squares grow", "section 1", grows, f"{len(squares)} squares")],
    )


def load(settings, preset, data_dir, *, fails_at=None, broken=False):
    if broken:
        raise InputError("there are no data")
    return {"fails_at": fails_at}


@pytest.fixture
def experiment():
    """The experiment, with every state of its page that was written."""
    pages = []

    def make(**given):
        return Experiment(
            name="squares",
            presets=PRESETS,
            about=ABOUT,
            check_settings=lambda settings, data_dir: None,
            load=functools.partial(load, **given),
            members=members,
            steps=steps,
            complete=("first.json", "second.json"),
            report=functools.partial(report, pages=pages),
            files=("file",),
        )

    make.pages = pages
    return make


def verdicts(folder):
    return [claim["verdict"] for claim in json.loads((folder / "claims.json").read_text())]


def test_a_member_that_diverges_is_a_row_and_the_others_go_on(experiment, tmp_path, capsys):
    page = execute(experiment(fails_at=2.0), ["--out", str(tmp_path)])
    html = page.read_text()
    row = html.split('<td class="word">value 2</td>')[1].split("</tr>")[0]
    assert "failed" in row
    assert "NonFiniteLossError: loss is not finite in epoch 2, step 3 of 9." in row
    assert "2 of 3 are finished" in html
    assert list(pd.read_csv(tmp_path / "all_squares.csv")["square"]) == [1, 9]
    assert verdicts(tmp_path) == ["held"]
    assert "value 2 failed, the others go on" in capsys.readouterr().out
    # the same command tries it again, and leaves the others alone
    before = (tmp_path / "m" / "3" / "second.json").stat().st_mtime_ns
    html = execute(experiment(), ["--out", str(tmp_path)]).read_text()
    assert "Missing from this page" not in html
    assert list(pd.read_csv(tmp_path / "all_squares.csv")["square"]) == [1, 4, 9]
    assert (tmp_path / "m" / "3" / "second.json").stat().st_mtime_ns == before


def test_the_page_is_written_after_every_step(experiment, tmp_path, monkeypatch):
    seen = []
    write = common.write_page

    def recorded(run, preset, content, progress, *, redraw=True):
        path = write(run, preset, content, progress, redraw=redraw)
        seen.append((len(progress.finished), verdicts(run.folder), path.read_text()))
        return path

    monkeypatch.setattr(common, "write_page", recorded)
    execute(experiment(), ["--out", str(tmp_path)])
    counts = [finished for finished, _, _ in seen]
    assert counts == sorted(counts)
    assert {0, 1, 2, 3} == set(counts)
    assert seen[0][1] == ["not tested"]
    assert seen[counts.index(2)][1] == ["not decided"]
    assert "value 3" in seen[counts.index(2)][2] and "not finished" in seen[counts.index(2)][2]
    assert seen[-1][1] == ["held"]
    assert "not finished" not in seen[-1][2]
    assert (tmp_path / "figures" / "one.png").is_file()
    # nothing is left to be done: one page, drawn again
    before = len(seen)
    execute(experiment(), ["--out", str(tmp_path)])
    assert len(seen) == before + 1


def test_all_members_fail(experiment, tmp_path):
    page = execute(experiment(fails_at=4.0), ["--preset", "paper", "--out", str(tmp_path)])
    assert "0 of 1 are finished" in page.read_text()
    assert verdicts(tmp_path) == ["not tested"]


def test_missing_data_leave_nothing_behind(experiment, tmp_path):
    with pytest.raises(InputError, match="there are no data"):
        execute(experiment(broken=True), ["--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_other_errors_are_not_swallowed(experiment, tmp_path):
    broken = dataclasses.replace(experiment(), steps=lambda task, member: iter([1 / 0]))
    with pytest.raises(ZeroDivisionError):
        execute(broken, ["--out", str(tmp_path)])


def test_an_experiment_on_one_device(experiment, tmp_path):
    small = dataclasses.replace(experiment(), distributed=False)
    for given in (["--strategy", "mirrored"], ["--scheduler", "tcp://localhost:1"]):
        with pytest.raises(InputError, match="runs on one device"):
            execute(small, ["--out", str(tmp_path / "run"), *given])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "given",
    [
        ["--preset", "paper", "--file", "x"],
        ["--preset=paper", "--file", "x"],
        ["--file", "x", "--preset", "paper"],
        ["paper", "--file", "x"],
    ],
)
def test_a_preset_wherever_it_stands(given):
    command = parse(PRESETS, "squares", given, about=ABOUT)
    assert (command.preset, command.settings) == ("paper", Settings((4.0,), "x"))
    assert command.out == Path("runs/squares-paper")


def test_defaults_and_overrides():
    command = parse(PRESETS, "squares", [], about=ABOUT)
    assert (command.preset, command.settings, command.open) == ("demo", Settings(), False)
    given = ["--values", "1", "2.5", "--out", "o", "--data-dir", "d", "--open"]
    command = parse(PRESETS, "squares", [*given, "--strategy", "one"], about=ABOUT)
    assert command.settings.values == (1.0, 2.5)
    assert (command.out, command.data_dir, command.open) == (Path("o"), Path("d"), True)
    assert command.strategy == "one"


def test_help_lists_presets_and_settings(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(PRESETS, "squares", ["--preset", "paper", "--help"], about=ABOUT)
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for words in ("--preset demo: Small.", "--preset paper: Large.", "--values", "--scheduler"):
        assert words in text
    assert "One member each. (default: 4.0)" in text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--preset", "papr"], "demo, paper"),
        (["--value", "3"], "--values"),
        (["--values", "x"], "--values"),
        (["--strategy", "two"], "multi_worker"),
    ],
)
def test_malformed_command_lines(given, words, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(PRESETS, "squares", given, about=ABOUT)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert words in captured.err + captured.out


def test_a_scheduler_takes_no_strategy():
    given = ["--scheduler", "tcp://localhost:1", "--strategy", "mirrored"]
    with pytest.raises(InputError, match="leave --strategy out"):
        parse(PRESETS, "squares", given, about=ABOUT)
