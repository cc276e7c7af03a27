"""``unskew data list`` and ``prepare``: which datasets there are, which are ready, and bringing one into its folder."""

import logging
from pathlib import Path

from tabulate import tabulate

from unskew import config
from unskew.data.dataset import DATASET_REGISTRY, DatasetBase
from unskew.data.published import PublishedDataset
from unskew.download.install import prepare
from unskew.utils.files import expand
from unskew.utils.registry import discover

logger = logging.getLogger("unskew")


def dataset_class(name: str) -> type[DatasetBase]:
    """The class of a dataset.

    Raises:
        ValueError: there is none of this name; the near ones are listed.
    """
    config.check_name("datasets", name)
    discover("unskew.datasets")
    return DATASET_REGISTRY.get(name)


def state(dataset: type[DatasetBase], data: Path) -> str:
    """ "ready", "incomplete" or "missing" below the folder of datasets; "built in"; "yours"."""
    if not issubclass(dataset, PublishedDataset):
        return "built in" if hasattr(dataset, "info") else "yours"
    folder = data / dataset.dataset_dir
    there = [source.is_there(folder) for source in dataset.sources]
    if all(there):
        return "ready"
    return "incomplete" if folder.is_dir() and any(there) else "missing"


def table(data: str | Path) -> str:
    """All datasets with their state below ``data``, classes, images, download and licence."""
    data, rows = expand(data), []
    for name in config.names("datasets"):
        dataset = dataset_class(name)
        info = getattr(dataset, "info", None)
        facts = (f"{info.classes:,}", f"{info.images:,}", info.size, info.licence) if info else ("", "", "", "")
        rows.append((name, state(dataset, data), *facts))
    order = ("built in", "ready", "incomplete", "missing", "yours")
    rows.sort(key=lambda row: order.index(row[1]))  # stable: by name within a state
    header = ("dataset", "state", "classes", "images", "download", "licence")  # as published
    align = ("left", "left", "right", "right", "right", "left")
    return tabulate(rows, header, tablefmt="github", colalign=align, disable_numparse=True)


def download(name: str, data: str | Path) -> None:
    """Download, check and lay out a published dataset below ``data``; what is there already stays.

    Raises:
        FileNotFoundError: something has to be fetched by hand; says what, and where it goes.
        ValueError, OSError: see `unskew.download.install.prepare`.
    """
    dataset = dataset_class(name)
    if not issubclass(dataset, PublishedDataset):
        logger.info(f"'{name}' needs nothing: it is {state(dataset, Path(data))}")
        return
    folder = expand(data) / dataset.dataset_dir
    by_hand = [source for source in dataset.sources if not source.urls]
    prepare(folder, [source for source in dataset.sources if source.urls and not source.is_there(folder)])
    dataset.arrange(folder)
    prepare(folder, [source for source in by_hand if not source.is_there(folder)])
