"""The wheel and the sdist: their content, and the use of the wheel beside other packages and in an empty home."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import unskew

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (
    *("unskew", "trainers", "datasets", "configs"),
    *(".ci", ".github", "benchmarks", "docs", "examples", "scripts", "tests"),  # in the sdist alone
)


def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return archive.read(name).decode()


def files_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout with both files in ``dist``, and the names of its files before the build."""
    folder = tmp_path_factory.mktemp("release") / "source"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for pattern in ("*.py", "*.md", "*.toml", "*.cff", "*.in", "*.yml", "LICENSE"):
        for path in ROOT.glob(pattern):
            shutil.copy(path, folder)
    before = files_below(folder)
    command = [sys.executable, "-m", "build", "--no-isolation"]  # the tools are here, so that no network is needed
    done = subprocess.run(command, cwd=folder, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, before


@pytest.fixture(scope="module")
def wheel(checkout):
    (path,) = (checkout[0] / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([*install, str(wheel)], check=True, timeout=300)
    return folder


def test_the_files_of_a_release_pass_twine(checkout):
    files = sorted(map(str, (checkout[0] / "dist").iterdir()))
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True)
    assert len(files) == 2 and done.returncode == 0, done.stdout


def test_the_sdist_has_all_files_of_the_repository(checkout):
    folder, before = checkout
    (path,) = (folder / "dist").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    made = {name for name in names if name.startswith("unskew.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert names - made == before


def test_the_version_is_the_same_everywhere():
    changes = re.findall(r"^## (\d\S+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert changes[0] == (unskew.__version__, str(citation["date-released"])) and changes == sorted(changes)[::-1]
    assert citation["version"] == unskew.__version__
    page = (ROOT / "docs" / "CITE.md").read_text(encoding="utf-8")
    assert re.findall(r"version += {(.*?)}", page) == [unskew.__version__]
    for paper in citation["references"]:
        authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
        for fact in (paper["title"], authors, str(paper["year"]), paper["identifiers"][0]["value"]):
            assert f"{{{fact}}}" in page


def test_the_wheel_names_the_licences_of_its_pictures(wheel):
    expression = re.search(r"^License-Expression: (.*)$", metadata(wheel), re.MULTILINE)[1].split(" AND ")
    notice = (ROOT / "unskew" / "micro" / "pictures" / "NOTICE").read_text(encoding="utf-8")
    words = {
        "MIT": "MIT licence",
        "CC-BY-4.0": "Creative Commons Attribution 4.0",
        "CC-BY-SA-4.0": "Creative Commons Attribution-ShareAlike 4.0",
        "Unicode-3.0": "Unicode License V3",
    }
    assert set(expression) == set(words) and all(text in notice for text in words.values())
    files = re.findall(r"^License-File: (.*)$", metadata(wheel), re.MULTILINE)
    assert files == ["LICENSE", "unskew/micro/pictures/NOTICE"]


def test_the_workflow_runs_the_checks_with_all_versions_of_python(wheel):
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]["test"]
    text = metadata(wheel)
    versions = re.findall(r"^Classifier: Programming Language :: Python :: (3\.\d+)$", text, re.MULTILINE)
    assert job["strategy"]["matrix"]["python"] == versions
    assert f"Requires-Python: >={versions[0]}\n" in text
    assert job["steps"][-1]["run"] == "bash .ci/run"


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


def test_the_installed_package_works_beside_hugging_faces_datasets(site, tmp_path):
    other = tmp_path / "other"
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


def test_the_installed_package_trains_with_an_empty_home(site, tmp_path):
    words = ["train", "-d", "digits", "-t", "GLA", "--shots", "16", "OPTIM.MAX_EPOCH", "1", "INPUT.VIEWS", "1"]
    (tmp_path / "home").mkdir()
    names = {name: value for name, value in os.environ.items() if not name.startswith(("UNSKEW", "XDG"))}
    env = {**names, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1", "HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "unskew", *words]
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert 70 < float(re.findall(r"^accuracy (\d+\.\d)%", run.stdout, re.MULTILINE)[-1]) < 95
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "home", "output"]
