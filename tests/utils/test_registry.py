import sys
from pathlib import Path
from types import ModuleType

import pytest

from unskew.utils.registry import Registry, discover


def test_register_and_get():
    registry = Registry("ANIMAL")

    @registry.register()
    class Cat: ...

    @registry.register("dog")
    class Hound: ...

    assert registry.get("Cat") is Cat
    assert registry.get("dog") is Hound
    assert registry.registered_names() == ["Cat", "dog"]
    assert "dog" in registry


def test_a_duplicate_is_refused_unless_forced():
    registry = Registry("ANIMAL")
    registry.register("cat")(int)
    with pytest.raises(KeyError, match="cat"):
        registry.register("cat")(str)
    registry.register("cat", str, force=True)
    assert registry.get("cat") is str


def test_similar_names_are_suggested_for_an_unknown_name():
    registry = Registry("ANIMAL")
    for name in ("Cat", "Catfish", "Dog"):
        registry.register(name)(int)
    with pytest.raises(ValueError, match="mean Cat"):
        registry.get("CAT")
    with pytest.raises(ValueError, match="Cat, Catfish, Dog"):
        registry.get("zzz")


def test_force_in_dassls_form():
    registry = Registry("TRAINER")
    first, second = (type("X", (), {}) for _ in range(2))
    registry.register(first)
    with pytest.raises(KeyError, match="X"):
        registry.register(second)
    registry.register(second, True)
    assert registry.get("X") is second


def registered_from(folder, monkeypatch, package):
    """Return the names that ``<package>.some_module`` in ``folder`` registers when it is imported by this name."""
    module = ModuleType(f"{package}.some_module")
    module.__file__ = str(folder / package / "some_module.py")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    registry = Registry("TRAINER")
    registry.register()(type("X", (), {"__module__": module.__name__}))
    return registry.registered_names()


@pytest.mark.parametrize("package", ["trainers", "datasets"])
def test_files_of_this_project_are_refused_under_a_bare_name(monkeypatch, package):
    with pytest.raises(ValueError, match=rf"unskew\.{package}\.some_module"):
        registered_from(Path(__file__).parents[2], monkeypatch, package)


@pytest.mark.parametrize("package", ["trainers", "datasets"])
def test_other_packages_of_these_names_are_accepted(tmp_path, monkeypatch, package):
    assert registered_from(tmp_path, monkeypatch, package) == ["X"]


def test_discover_imports_the_modules_of_both_folders():
    names = [module.__name__ for module in discover("unskew.trainers")]
    assert "unskew.trainers.gla" in names
    assert "unskew.datasets.digits" in [module.__name__ for module in discover("unskew.datasets")]


@pytest.mark.parametrize(("name", "imported"), [("CoOp", ["CoOp"]), ("Tiny", ["CoOp", "Tiny", "Other"])])
def test_a_registry_imports_the_module_of_a_name_alone_if_there_is_one(name, imported, tmp_path, monkeypatch):
    package = f"methods_{name}"
    (tmp_path / package).mkdir()
    for module, cls in (("coop", "CoOp"), ("more", "Tiny"), ("other", "Other")):
        text = f"from registry_of_methods import METHODS\n\n\n@METHODS.register()\nclass {cls}: ...\n"
        (tmp_path / package / f"{module}.py").write_text(text)
    home = ModuleType("registry_of_methods")
    home.METHODS = Registry("METHOD", package)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, home.__name__, home)
    assert home.METHODS.get(name).__name__ == name
    assert home.METHODS.registered_names() == imported
