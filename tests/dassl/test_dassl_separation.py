"""Packages of one name: those of a script or plugin, and installed ones."""

import importlib
import json
import subprocess
import sys
import threading

import pytest
from plugin_traces import as_a_process
from test_dassl_run import finish, start

from unskew.cli.main import main
from unskew.dassl import separation
from unskew.runs import plugins

PARTS = {
    # The modified copy of a library, as BiomedCoOp has one of open_clip; it imports itself in three ways.
    "open_clip/__init__.py": "",
    "open_clip/model.py": "from . import parts\nimport open_clip.parts as same\nNAME = 'theirs'\nassert same is parts",
    "open_clip/parts.py": "NAME = 'theirs'",
    # A folder without __init__.py, with the name of Hugging Face's package.
    "datasets/pets.py": """
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum


@DATASET_REGISTRY.register()
class OwnPets(DatasetBase):
    def __init__(self, cfg):
        super().__init__(train_x=[Datum("a.png")])
""",
    "models/__init__.py": "",
    "train.py": """
import importlib
import json

import open_clip.model
from datasets.pets import OwnPets
import installed_user


def later():
    import open_clip.parts
    from datasets import pets

    return [open_clip.parts.NAME, pets.OwnPets is OwnPets, importlib.import_module("open_clip.parts").NAME]


def facts():
    import pickle

    return {
        "theirs": [open_clip.model.NAME, *later()],
        "installed": installed_user.facts(),
        "pickled": pickle.loads(pickle.dumps(OwnPets)) is OwnPets,
    }


if __name__ == "__main__":
    print(json.dumps(facts()))
""",
}

# An installed module that imports at call time, as most libraries do.
INSTALLED = {
    "installed_user.py": """
def facts():
    import open_clip
    from datasets import Dataset
    from open_clip.tokenizer import SimpleTokenizer

    return [hasattr(open_clip, "create_model"), Dataset.__name__, SimpleTokenizer.__module__]
""",
    "datasets/__init__.py": "from .arrow import Dataset",
    "datasets/arrow.py": "class Dataset:\n    pass",
}

EXPECTED = {
    "theirs": ["theirs", "theirs", True, "theirs"],
    "installed": [True, "Dataset", "open_clip.tokenizer"],
    "pickled": True,
}


def write_all(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def code(tmp_path):
    """Return the folder of a codebase; beside it is a folder of installed packages, one named `datasets`."""
    write_all(tmp_path / "site-packages", INSTALLED)
    return write_all(tmp_path / "code", PARTS)


def test_a_script_and_installed_packages_have_their_own(code):
    output = finish(start("train.py", cwd=code, path=[code.parent / "site-packages"]))
    assert json.loads(output.splitlines()[-1]) == EXPECTED


@pytest.fixture
def plugin(code, monkeypatch):
    with as_a_process(code):
        monkeypatch.syspath_prepend(code.parent / "site-packages")
        for name in [name for name in sys.modules if name.split(".")[0] in ("train", "models")]:
            monkeypatch.delitem(sys.modules, name)
        yield code / "train.py"
    sys.modules.pop("installed_user", None)


@pytest.mark.parametrize("loaded", [False, True])
def test_a_plugin_and_installed_packages_have_their_own(plugin, loaded):
    if loaded:
        import open_clip

        before = open_clip
    plugins.load([str(plugin)])
    assert sys.modules["train"].facts() == EXPECTED
    import open_clip  # this file is not the plugin's

    from datasets import Dataset

    assert Dataset.__module__ == "datasets.arrow"
    assert not loaded or open_clip is before
    assert importlib.import_module("open_clip.model").CLIP is open_clip.CLIP
    assert sys.modules["open_clip"].__file__ == str(plugin.parent / "open_clip" / "__init__.py")  # for pickle


def test_only_names_on_both_sides_are_separated(plugin):
    for _ in range(2):
        separated = set(separation.separate(plugin.parent))
        assert separated >= {"datasets", "open_clip"} and "models" not in separated


def test_without_such_names_imports_are_pythons(tmp_path):
    with as_a_process(tmp_path):
        (tmp_path / "random.py").write_text("")  # a name of the standard library stays Python's
        (tmp_path / "alone.py").write_text("")
        before = __builtins__["__import__"], list(sys.meta_path)
        assert separation.separate(tmp_path) == []
        assert (__builtins__["__import__"], sys.meta_path) == before
        assert sys.path[0] == str(tmp_path)


def test_an_import_that_fails_leaves_the_sides_as_they_are(plugin):
    plugins.load([str(plugin)])
    with pytest.raises(ModuleNotFoundError, match=r"open_clip\.absent"):
        importlib.import_module("open_clip.absent")
    assert sys.modules["train"].facts() == EXPECTED


def test_threads_import_from_both_sides(plugin):
    plugins.load([str(plugin)])
    found, theirs = [], sys.modules["train"]

    def work(facts, expected):
        found.extend(facts() == expected for _ in range(30))

    sides = [(theirs.later, EXPECTED["theirs"][1:]), (theirs.installed_user.facts, EXPECTED["installed"])]
    threads = [threading.Thread(target=work, args=side) for side in sides * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 120


def test_our_trainer_runs_beside_a_plugin_with_open_clip(plugin, data_root, tmp_path):
    arguments = ["train", "--plugin", str(plugin), "-d", "digits", "-b", "micro", "-t", "ZeroshotCLIP"]
    assert main([*arguments, "--shots", "1", "--root", data_root, "--output-dir", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "metrics.json").is_file()


def test_help_is_fast():
    """The command's help needs neither torch nor the separation."""
    code = "import sys; from unskew.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([name for name in ('torch', 'open_clip', 'unskew.dassl.separation') if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"
