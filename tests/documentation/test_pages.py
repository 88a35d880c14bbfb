"""Links, commands, the table of floors and the list of pages agree with the code."""

import importlib.util
import inspect
import re
import shlex

import pytest
import test_house
import tyro
from helpers.documentation import PAGES, README, ROOT, anchors, commands, links, name_of

import tfrobust
from tfrobust.commands import dispatch

# the list of changes names commands that are gone
COMMANDS = {line for page in PAGES if page.name != "CHANGELOG.md" for line in commands(page)}
FACES = sorted([*(ROOT / "tfrobust").glob("*/__init__.py"), ROOT / "reference_models/__init__.py"])


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 130


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        if anchor and target.parent.name != "api":  # those are made, and checked, with the site
            assert anchor in anchors(target), link


@pytest.mark.parametrize("line", sorted(COMMANDS))
def test_a_command_parses(line, capsys):
    """Nothing is run; MODEL, FOLDER and other words in capitals stand for themselves."""
    words = [word for word in shlex.split(line) if word not in ("...", "&")]
    if words[0] == "tfrobust":
        module = importlib.import_module(f"tfrobust.commands.{dispatch.COMMANDS[words[1]][0]}")
        if words[2:] or line == "tfrobust list":  # else the sentence means the command as such
            tyro.cli(module.Command, args=words[2:])
        return
    module, arguments = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
    if importlib.util.find_spec(f"{module}.__main__" if is_package(module) else module) is None:
        raise AssertionError(f"no module {module}")
    if arguments:
        runnable = importlib.import_module(f"{module}.__main__" if is_package(module) else module)
        with pytest.raises(SystemExit) as end:
            runnable.main([*arguments, "--help"])
        assert not end.value.code
        text = capsys.readouterr().out
        for option, value in zip(arguments, [*arguments[1:], ""], strict=True):
            assert not option.startswith("--") or option in text
            assert option != "--preset" or value in text


def is_package(module):
    return ROOT.joinpath(*module.split(".")).is_dir()


def test_the_table_of_floors_is_that_of_the_imports():
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", (ROOT / "docs/architecture.md").read_text(), re.M)
    described = {int(number): set(re.findall(r"`(\w+)`", rooms)) for number, rooms in rows}
    rooms = {path.stem for path in (ROOT / "tfrobust").iterdir() if not path.name.startswith("_")}
    for number, floor in enumerate(test_house.FLOORS, 1):
        assert set(floor) & rooms <= described.get(number, set()) <= set(floor)


def test_every_public_module_has_a_page():
    documented = "\n".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    for name in tfrobust.__all__:
        value = getattr(tfrobust, name)
        if inspect.ismodule(value):
            assert f"::: {value.__name__}\n" in documented


@pytest.mark.parametrize("page", sorted((ROOT / "docs/api").glob("*.md")), ids=name_of)
def test_what_a_page_documents_exists(page):
    for target in re.findall(r"^::: (\S+)$", page.read_text(), re.M):
        if importlib.util.find_spec(target.rpartition(".")[0] or target) is None:
            raise AssertionError(f"no {target}")
        module, _, name = target.rpartition(".")
        assert not module or hasattr(importlib.import_module(module), name), target


@pytest.mark.parametrize("face", FACES, ids=name_of)
def test_functions_named_as_their_module_are_documented(face):
    """Static analysis, by which the pages are made, takes such a name for the module."""
    package = test_house.name_of(face)
    page = ROOT / "docs" / "api" / f"{face.parent.name}.md"
    for name in test_house.offered(package):
        value = getattr(importlib.import_module(package), name)
        if (face.parent / f"{name}.py").exists() and not inspect.ismodule(value):
            assert f"::: {package}.{name}.{name}\n" in page.read_text()


def test_the_page_of_the_package_lists_every_name():
    text = (ROOT / "docs/api/tfrobust.md").read_text()
    assert sorted(re.findall(r"\[`(\w+)`\]", text)) == sorted(tfrobust.__all__)


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.*")), ids=name_of)
def test_every_page_is_in_the_navigation(path):
    if path.suffix in (".md", ".ipynb"):
        assert path.relative_to(ROOT / "docs").as_posix() in (ROOT / "mkdocs.yml").read_text()
