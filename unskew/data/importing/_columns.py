"""The columns of images and labels among the features of a table."""

from collections.abc import Mapping, Sequence
from typing import Any

_WHOLE = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_WORDS = ("string", "large_string")


def choose_columns(features: Mapping[str, Any], image: str = "", label: str = "") -> tuple[str, str]:
    """Return the columns of images and of labels.

    Images are a feature ``Image``, else a struct of bytes and path, else binary values. Labels are a ``ClassLabel``,
    else the column ``label``, else the only column of words or whole numbers.

    Args:
        features: the features of the package datasets by column.
        image: the column that the user chose.
        label: the column that the user chose.

    Raises:
        ValueError: a chosen column is missing or of another kind, or several columns are possible.
    """
    images = (
        [name for name, feature in features.items() if type(feature).__name__ == "Image"],
        [name for name, feature in features.items() if _is_struct(feature)],
        [name for name, feature in features.items() if _dtype(feature) in ("binary", "large_binary")],
    )
    simple = [name for name, feature in features.items() if _dtype(feature) in (*_WHOLE, *_WORDS)]
    labels = (
        [name for name, feature in features.items() if hasattr(feature, "names")],
        [name for name in simple if name == "label"],
        simple,
    )
    return _choose("image", image, images, features), _choose("label", label, labels, features)


def _choose(kind: str, chosen: str, candidates: Sequence[Sequence[str]], features: Mapping[str, Any]) -> str:
    flag = f"--{kind}-column"
    if chosen:
        if not any(chosen in names for names in candidates):
            fault = f"has the type {features[chosen]}" if chosen in features else "does not exist"
            raise ValueError(f"{flag}: the column '{chosen}' {fault}; the columns are {', '.join(features)}")
        return chosen
    found = next(filter(None, candidates), [])
    if not found:
        raise ValueError(f"no column has {kind}s; the columns are {', '.join(features)}: give {flag}")
    if len(found) > 1:
        raise ValueError(f"several columns may have the {kind}s, {', '.join(found)}: choose one with {flag}")
    return found[0]


def _dtype(feature: Any) -> str:
    return str(getattr(feature, "dtype", ""))


def _is_struct(feature: Any) -> bool:
    return isinstance(feature, dict) and {"bytes", "path"} <= feature.keys() and _dtype(feature["bytes"]) == "binary"
