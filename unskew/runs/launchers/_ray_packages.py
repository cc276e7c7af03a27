"""The code and the packages of workers: their digest, and Ray's runtime environment."""

import contextlib
import functools
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import unskew

# Environment variables that decide results or places, beside the threads.
_VARIABLES = re.compile(r"(UNSKEW|HF|HUGGINGFACE|OMP|MKL|OPENBLAS|TORCH|CUDA|CUBLAS)_\w+|XDG_CACHE_HOME")
_OF_THE_NODE = ("CUDA_VISIBLE_DEVICES", "CUDA_HOME", "CUDA_PATH")
_BESIDE = ("trainers", "datasets", "configs")


def _folders() -> dict[str, Path]:
    """Return the folders of the code by their names inside the package."""
    home = Path(unskew.__file__).parent
    found = {name: Path(place) / name for place in unskew.__path__ for name in _BESIDE if (Path(place) / name).is_dir()}
    return {"": home, **{name: found[name] for name in _BESIDE if name in found}}  # other code may lack one


@functools.cache
def code_digest() -> str:
    """Return a digest of the version and of all Python and YAML files; it does not depend on their place."""
    digest = hashlib.sha256()
    for name, folder in _folders().items():
        for file in sorted(folder.rglob("*")):
            inside = file.relative_to(folder)
            is_beside = not name and inside.parts[0] in _BESIDE  # in an installed package, as another folder
            if file.suffix in (".py", ".yaml") and not is_beside:
                digest.update(f"{name}/{inside}\n".encode() + file.read_bytes())
    return f"{unskew.__version__} {digest.hexdigest()[:12]}"


def variables() -> dict[str, str]:
    """Return the environment variables that a worker shares with the driver: threads, caches, tokens."""
    given = {name: value for name, value in os.environ.items() if _VARIABLES.fullmatch(name)}
    return {name: value for name, value in given.items() if name not in _OF_THE_NODE}


def packages() -> list[str]:
    """Return the packages that unskew needs, with their versions here: "numpy==2.1.0".

    Raises:
        ValueError: unskew is not installed, only on the path of Python.
    """
    try:
        needed = metadata.requires("unskew") or []
    except metadata.PackageNotFoundError:
        raise ValueError("--ship needs the list of packages: install unskew (pip install -e .)") from None
    names = [re.split(r"[^\w.-]", entry)[0] for entry in needed if "extra ==" not in entry]
    # The builds of PyTorch differ in a local label, "2.9.0+cu128", which no package index knows.
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in names]


@contextlib.contextmanager
def runtime_env(ship_code: bool, ship_packages: bool) -> Iterator[dict]:
    """Return Ray's runtime environment of the workers, with a copy of the code while the context is open."""
    env: dict = {"env_vars": variables()}
    if ship_packages:
        env["pip"] = {"packages": packages(), "pip_check": False}
    with tempfile.TemporaryDirectory(prefix="unskew-") as temporary:
        if ship_code:
            copy = Path(temporary) / "unskew"
            for name, folder in _folders().items():
                shutil.copytree(folder, copy / name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
            env["py_modules"] = [str(copy)]
        yield env
