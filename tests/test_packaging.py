"""The wheel: its content, and its use beside other packages."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("unskew", "trainers", "datasets", "configs"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "-w", str(folder), str(folder / "source")], check=True, timeout=300)
    (path,) = folder.glob("*.whl")
    return path


def test_the_only_top_level_name_is_unskew(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"unskew"}


def test_the_wheel_has_all_modules_configs_models_and_type_markers(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"unskew/{path.relative_to(ROOT)}"
        for folder in ("trainers", "datasets")
        for path in (ROOT / folder).glob("*.py")
    }
    expected |= {f"unskew/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    for pattern in ("*.py", "*.pyi", "py.typed", "models/*.*", "report/*.*"):
        expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "unskew").rglob(pattern)}
    assert {"unskew/py.typed", "unskew/data/dataset.py", "unskew/micro/models/micro.safetensors"} <= expected
    assert "unskew/configs/published.yaml" in expected
    assert {f"unskew/runs/report/{name}" for name in ("page.html", "style.css", "table.js")} <= expected
    assert sorted(expected - names) == []


def test_the_installed_package_works_beside_hugging_faces_datasets(wheel, tmp_path):
    site, other = tmp_path / "site", tmp_path / "other"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True, timeout=300)
    (other / "datasets").mkdir(parents=True)
    (other / "datasets" / "__init__.py").write_text("name = 'Hugging Face'\n")
    code = (
        "import datasets, unskew, unskew.datasets.digits, unskew.trainers.gla\n"
        "from unskew import config\n"
        "assert datasets.name == 'Hugging Face', datasets\n"
        "print(unskew.__file__, unskew.trainers.gla.__file__, config.load('digits', '', 'GLA').MODEL.BACKBONE.NAME)\n"
    )
    env = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{other}", "PYTHONSAFEPATH": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    package, gla, backbone = run.stdout.split()
    assert Path(package).parent == site / "unskew"
    assert Path(gla) == site / "unskew" / "trainers" / "gla.py"
    assert backbone == "micro"
