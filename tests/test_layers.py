"""The rooms of the library import in one direction, at the top of files and inside functions."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Each room may import itself and the rooms of lower rank; rooms of one rank do not import each other.
RANKS = {
    **{"utils": 0, "debias": 1, "config": 1, "download": 1, "data": 2, "micro": 3, "clip": 4, "engine": 5, "dassl": 6},
    **{"runs": 7, "trainers": 7, "cli": 8},
}
DATASETS_IMPORT = {"data", "download", "micro", "utils"}
SOURCES = sorted(
    path for folder in ("unskew", "trainers", "datasets") for path in (ROOT / folder).rglob("*.py") if path.is_file()
)


def room_of(path: Path) -> str:
    """ "unskew/data/loaders.py" is in data, "trainers/coop.py" in trainers, "unskew/__main__.py" in none."""
    parts = path.relative_to(ROOT).parts
    parts = parts[1:] if parts[0] == "unskew" else parts
    return parts[0] if len(parts) > 1 else ""


def imported_modules(tree: ast.AST):
    """(module, line) of every import of this project, function-level ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from ((name, node.lineno) for name in names if name.split(".")[0] == "unskew")


def wrong_imports(path: Path) -> list[str]:
    here = room_of(path)
    found = []
    for module, line in imported_modules(ast.parse(path.read_text(encoding="utf-8"))):
        there = module.split(".")[1] if "." in module else ""
        if there == here or there not in {*RANKS, "datasets"}:  # `import unskew` itself: its path and version
            continue
        if here == "datasets":
            allowed = there in DATASETS_IMPORT
        elif here:
            allowed = there != "datasets" and RANKS[there] < RANKS[here]
        else:
            allowed = True
        if not allowed:
            found.append(f"{path.relative_to(ROOT)}:{line}: {here} imports {module}")
    return found


def test_the_rooms_are_those_of_the_plan():
    rooms = {path.name for path in (ROOT / "unskew").iterdir() if (path / "__init__.py").is_file()}
    assert rooms == RANKS.keys() - {"trainers"}
    assert {path.name for path in (ROOT / "unskew").glob("*.py")} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("room", [*RANKS, "datasets"])
def test_imports_go_in_one_direction(room):
    wrong = [line for path in SOURCES if room_of(path) == room for line in wrong_imports(path)]
    assert not wrong, "\n".join(wrong)


def test_a_trainer_imports_another_only_as_its_base():
    for path in (ROOT / "trainers").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        others = {name.split(".")[2] for name, _ in imported_modules(tree) if name.startswith("unskew.trainers.")}
        bases = {
            ast.unparse(base).split(".")[-1].lower()
            for node in tree.body
            if isinstance(node, ast.ClassDef)
            for base in node.bases
        }
        assert others <= bases, f"{path.name} imports {others - bases}"


def test_a_wrong_import_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "unskew" / "debias" / "x.py"
    path.parent.mkdir(parents=True)
    path.write_text("def f():\n    from unskew.engine.trainer import build_trainer\n")
    assert wrong_imports(path) == ["unskew/debias/x.py:2: debias imports unskew.engine.trainer.build_trainer"]


def test_below_runs_nobody_loads_a_config():
    """A run builds its config once and hands it on. Door 2 of dassl/ stands in for `runs` in a real Dassl."""
    rooms = ("data", "micro", "clip", "engine", "trainers", "datasets")
    for path in (path for path in SOURCES if room_of(path) in rooms):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in ("config.load", "unskew.config.load"), f"{path.name}:{node.lineno} calls {called}"
        modules = [module for module, _ in imported_modules(ast.parse(path.read_text(encoding="utf-8")))]
        assert "unskew.config.load" not in modules and "unskew.config.load.load" not in modules, path.name
