"""The structure of the code: which room may import which, and where each concern is allowed."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = sorted((ROOT / "tfrobust").rglob("*.py"))
CODE = [
    path
    for folder in ("tfrobust", "reference_models", "experiments", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
# from the ground up; a room imports from its own floor or from below
FLOORS = (
    ("arguments", "errors", "files", "interrupts", "lazy", "locks", "member_process", "norms"),
    ("layers",),
    ("distribution",),
    ("classifier", "data"),
    ("alignment", "attacks", "bounds", "objectives", "saliency"),
    ("training",),
    ("report",),
    ("manifold", "retraining"),
    ("evaluation",),
    ("commands",),
    ("__main__",),
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
# of a class's or module's public interface in spite of the underscore
PUBLIC = {"_asdict", "_exit", "_fields", "_make", "_replace"}


def name_of(path):
    """Dotted name of a module, with `__init__` left out."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def offered(package):
    """`__all__` of a package's face."""
    face = ROOT.joinpath(*package.split("."), "__init__.py")
    if not face.exists():
        return ()
    for node in ast.parse(face.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
            return ast.literal_eval(node.value)
    return ()


def imports_of(path):
    """Dotted names of the modules that a file imports, wherever in it."""
    modules = {name_of(each) for each in CODE}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            for alias in node.names:
                longer = f"{node.module}.{alias.name}"
                by_face = path.name != "__init__.py" and alias.name in offered(node.module)
                yield longer if longer in modules and not by_face else node.module


def private_imports(path):
    """Modules inside a folder of the library that a file outside it imports."""
    here = name_of(path) + (".__init__" if path.name == "__init__.py" else "")
    for module in imports_of(path):
        parts = module.split(".")
        folders = [".".join(parts[:depth]) for depth in range(2, len(parts))]
        if parts[0] == "tfrobust" and any(not here.startswith(f + ".") for f in folders):
            yield module


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_private_modules_are_imported_inside_their_folder_only(path):
    if path != ROOT / "tfrobust" / "__init__.py":  # offers `imagenet` and `figures` at the top
        assert not list(private_imports(path))


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_imports_go_downwards(path):
    parts = name_of(path).split(".")
    if len(parts) == 1:
        return
    assert parts[1] in LEVEL, f"on which floor is {parts[1]}?"
    for module in imports_of(path):
        if module.startswith("tfrobust."):
            room = module.split(".")[1]
            assert LEVEL[room] <= LEVEL[parts[1]], f"{name_of(path)} imports {module}"


def test_no_circles_between_rooms():
    graph = {}
    for path in LIBRARY:
        parts = name_of(path).split(".")
        targets = {m.split(".")[1] for m in imports_of(path) if m.startswith("tfrobust.")}
        if len(parts) > 1:
            graph.setdefault(parts[1], set()).update(targets - {parts[1]})
    while graph:
        leaves = [room for room, targets in graph.items() if not targets & graph.keys()]
        assert leaves, f"a circle among {sorted(graph)}"
        for room in leaves:
            del graph[room]


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_the_library_imports_no_experiment_and_only_commands_import_models(path):
    roots = {module.split(".")[0] for module in imports_of(path)}
    assert not roots & {"experiments", "benchmarks", "tests"}
    if name_of(path).split(".")[1:2] != ["commands"]:
        assert "reference_models" not in roots


@pytest.mark.parametrize(
    "path", [path for path in LIBRARY if path.name == "__init__.py"], ids=name_of
)
def test_faces_hold_no_code(path):
    docstring, *body = ast.parse(path.read_text()).body
    assert isinstance(docstring, ast.Expr)
    for node in body:
        assigns_all = isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
        assert assigns_all or isinstance(node, ast.ImportFrom)


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_files_are_one_concept(path):
    assert len(path.read_text().splitlines()) <= 350


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_private_attributes_of_other_objects_are_left_alone(path):
    if path.name == "keras_internals.py":
        return
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        private = isinstance(node, ast.Attribute) and node.attr.startswith("_")
        if not private or node.attr.endswith("__") or node.attr in PUBLIC:
            continue
        owner = node.value
        is_self = isinstance(owner, ast.Name) and owner.id in ("self", "cls")
        is_super = isinstance(owner, ast.Call) and getattr(owner.func, "id", "") == "super"
        assert is_self or is_super, f"line {node.lineno}: {ast.unparse(node)}"
    for module in imports_of(path):
        assert not module.startswith("keras.src"), module


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_user_errors_are_caught_in_one_place(path):
    if name_of(path) == "tfrobust.commands.terminal":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler) and node.type is not None:
            names = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
            names |= {n.attr for n in ast.walk(node.type) if isinstance(n, ast.Attribute)}
            assert not names & {"TfrobustError", "InputError"}, f"line {node.lineno}"


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_errors_have_the_one_base(path):
    bare = {"ValueError", "TypeError", "OSError", "FileNotFoundError"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            assert getattr(node.exc.func, "id", None) not in bare, f"line {node.lineno}"
