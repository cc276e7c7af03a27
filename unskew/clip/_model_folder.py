"""Folders that hold a model as open_clip saves it: ``open_clip_config.json`` beside a file of weights."""

import hashlib
import json
from pathlib import Path
from typing import Any

from unskew.utils.errors import MissingWeightsError
from unskew.utils.files import read_json

CONFIG = "open_clip_config.json"

# The names under which open_clip looks for weights first.
_PREFERRED = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"),
    *("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth"),
    *("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"),
)
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")

_CHOICES = {"interpolation": ("bicubic", "bilinear", "random"), "resize_mode": ("shortest", "longest", "squash")}

# Sizes in which a config must agree with the architecture in the name of a backbone.
_SIZES = ("width", "layers", "patch_size")


def find_weights(folder: Path) -> Path:
    """Return the file of weights in a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there are several, and none has a name that open_clip gives.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES)
    preferred = [folder / name for name in _PREFERRED if folder / name in files]
    if not files:
        raise MissingWeightsError(f"'{folder}' holds no weights: put a file {_PREFERRED[0]} into it")
    if not preferred and len(files) > 1:
        names = ", ".join(file.name for file in files[:3])
        raise ValueError(f"'{folder}' holds several files of weights ({names}): give one of them as ARCH@FILE")
    return [*preferred, *files][0]


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's config: ``model_cfg`` and ``preprocess_cfg``.

    Raises:
        FileNotFoundError: there is no folder, or no config in it.
        ValueError: the config is not one of open_clip's.
    """
    if not folder.is_dir():
        raise MissingWeightsError(f"there is no folder '{folder}': give the folder of a model that open_clip saved")
    file = folder / CONFIG
    content = _mapping(read_json(file))
    model, preprocess = _mapping(content.get("model_cfg")), _mapping(content.get("preprocess_cfg"))
    if not (_mapping(model.get("vision_cfg")) and _mapping(model.get("text_cfg"))):
        raise ValueError(f"'{file}' must hold a 'model_cfg' with 'vision_cfg' and 'text_cfg': save it with open_clip")
    for key, problem in _problems(preprocess):
        raise ValueError(f"'{file}': preprocess_cfg.{key} must be {problem} (got {preprocess[key]!r})")
    return {"model_cfg": model, "preprocess_cfg": preprocess}


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _problems(preprocess: dict) -> list[tuple[str, str]]:
    """Return the keys with wrong values, and the values that they take."""
    found = []
    for key in ("mean", "std"):
        numbers = preprocess.get(key) or [1.0] * 3
        right = isinstance(numbers, list) and [type(number) in (int, float) for number in numbers] == [True] * 3
        if not right or (key == "std" and min(numbers) <= 0):
            found.append((key, f"three {'positive ' if key == 'std' else ''}numbers"))
    for key, choices in _CHOICES.items():
        if preprocess.get(key) is not None and preprocess[key] not in choices:
            found.append((key, f"one of {', '.join(choices)}"))
    return found


def hash_config(content: dict[str, Any]) -> str:
    """Return a short hash of a config's architecture; the preprocessing is part of the transform."""
    return hashlib.sha256(json.dumps(content["model_cfg"], sort_keys=True).encode()).hexdigest()[:8]


def check_architecture(folder: Path, content: dict[str, Any], arch: str, expected: dict[str, Any]) -> None:
    """Raise ``ValueError`` if the config beside a file is of another architecture than the backbone's name."""
    theirs, ours = content["model_cfg"], expected
    pairs = [(theirs.get("embed_dim"), ours.get("embed_dim"))]
    pairs += [(theirs["vision_cfg"].get(key), ours["vision_cfg"].get(key)) for key in _SIZES]
    if any(a is not None and b is not None and a != b for a, b in pairs):
        raise ValueError(
            f"the name says {arch}, but '{folder / CONFIG}' describes a model of another size: give the folder as "
            f"local-dir:{folder}, or move the weights to a folder of their own"
        )
