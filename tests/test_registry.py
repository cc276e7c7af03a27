import pytest

from unskew.registry import Registry, discover


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


def test_an_unknown_name_lists_the_near_ones_whatever_the_case():
    registry = Registry("ANIMAL")
    for name in ("Cat", "Catfish", "Dog"):
        registry.register(name)(int)
    with pytest.raises(ValueError, match="did you mean Cat"):
        registry.get("CAT")
    with pytest.raises(ValueError, match=r"choose one of \(known: Cat, Catfish, Dog\)"):
        registry.get("zzz")


def test_a_bare_import_is_refused():
    registry = Registry("TRAINER")
    with pytest.raises(ValueError, match=r"import 'unskew\.trainers\.x'"):
        registry.register()(type("X", (), {"__module__": "trainers.x"}))


def test_discover_imports_the_modules_of_both_folders():
    names = [module.__name__ for module in discover("unskew.trainers")]
    assert "unskew.trainers.gla" in names
    assert "unskew.datasets.digits" in [module.__name__ for module in discover("unskew.datasets")]
