"""The public names: each has a type, a docstring and an example that runs."""

import ast
import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import unskew

STUB = ast.parse((Path(unskew.__file__).parent / "__init__.pyi").read_text(encoding="utf-8"))
NAMES = sorted(alias.name for node in STUB.body if isinstance(node, ast.ImportFrom) for alias in node.names)
# Values and classes whose use is shown elsewhere.
REGISTRIES = {"DATASET_REGISTRY", "TRAINER_REGISTRY"}
PLANNED = """
    GLA estimate_log_prior PriorEstimate read_prior adjust fit_temperature combine_members prior_groups
    classification_metrics load_backbone encode_images zeroshot_classifier train load_run Run sweep results
    list_trainers list_datasets list_backbones true_log_prior CLIPTrainer TRAINER_REGISTRY DATASET_REGISTRY Datum
    DatasetBase summarize
"""


def test_the_names_are_the_planned_ones():
    assert sorted(unskew.__all__) == NAMES == sorted(PLANNED.split())
    assert set(NAMES) <= set(dir(unskew))


def test_import_loads_no_heavy_library():
    heavy = "{'torch', 'scipy', 'sklearn', 'pandas', 'open_clip', 'torchvision', 'PIL', 'numpy'}"
    code = f"import sys, unskew; sys.exit(sorted({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        unskew.nothing_of_this_name  # noqa: B018 - the access is the test


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_has_types_and_a_docstring(name):
    value = getattr(unskew, name)
    assert inspect.getdoc(value)
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        assert signature.return_annotation is not signature.empty
        assert all(parameter.annotation is not parameter.empty for parameter in signature.parameters.values())


@pytest.mark.parametrize("name", sorted(set(NAMES) - REGISTRIES))
def test_the_example_of_a_public_name_runs(name, tmp_path, monkeypatch, data_root):
    monkeypatch.chdir(tmp_path)
    value = getattr(unskew, name)
    examples = doctest.DocTestParser().get_doctest(inspect.getdoc(value), {}, name, None, 0)
    assert examples.examples, f"{name} has no example"
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(examples, out=report.append)
    assert not runner.failures, "".join(report)


def test_the_types_are_known_to_a_checker(tmp_path):
    """A user's file gets the types of the stub: none of the names is Any or unknown."""
    lines = [f"reveal_type(unskew.{name})" for name in NAMES]
    (tmp_path / "user.py").write_text("\n".join(["import unskew", *lines, ""]))
    root = Path(unskew.__file__).parents[1]
    command = [sys.executable, "-m", "mypy", "--config-file", str(root / "pyproject.toml"), str(tmp_path / "user.py")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    revealed = [line for line in done.stdout.splitlines() if "Revealed type" in line]
    assert len(revealed) == len(NAMES), done.stdout + done.stderr
    assert not [line for line in revealed if '"Any"' in line]
