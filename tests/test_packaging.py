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
    ignore = shutil.ignore_patterns(".git", ".venv", "*.egg-info", "build", "output", "data", "__pycache__", "tests")
    shutil.copytree(ROOT, folder / "source", ignore=ignore)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "-w", str(folder), str(folder / "source")], check=True, timeout=300)
    (path,) = folder.glob("*.whl")
    return path


def test_the_only_top_level_name_is_unskew(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"unskew"}
    for needed in (
        "trainers/gla.py",
        "datasets/digits.py",
        "configs/trainers/GLA.yaml",
        "configs/datasets/digits.yaml",
    ):
        assert f"unskew/{needed}" in names
    assert "unskew/micro/models/micro.safetensors" in names


def test_it_imports_beside_the_well_known_datasets_package(wheel, tmp_path):
    site, other = tmp_path / "site", tmp_path / "other"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True, timeout=300)
    (other / "datasets").mkdir(parents=True)
    (other / "datasets" / "__init__.py").write_text("name = 'the well-known one'\n")
    code = (
        "import datasets, unskew, unskew.datasets.digits, unskew.trainers.gla\n"
        "from unskew import config\n"
        "assert datasets.name == 'the well-known one', datasets\n"
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
