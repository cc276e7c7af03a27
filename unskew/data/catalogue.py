"""The commands ``unskew data list`` and ``unskew data prepare``."""

import logging
from pathlib import Path

from tabulate import tabulate

from unskew import config
from unskew.data.dataset import DATASET_REGISTRY, DatasetBase
from unskew.data.image_folders import EXTENSIONS
from unskew.data.published import PublishedDataset
from unskew.download.install import prepare
from unskew.download.targets import check
from unskew.utils.files import expand

logger = logging.getLogger("unskew")


def dataset_class(name: str) -> type[DatasetBase]:
    """Return the class of a dataset.

    Raises:
        ValueError: the name is unknown; the message suggests similar ones.
    """
    config.check_name("datasets", name)
    return DATASET_REGISTRY.get(name)


def state(dataset: type[DatasetBase], data: Path) -> str:
    """Return the state of a dataset.

    Args:
        dataset: the dataset's class.
        data: the folder of all datasets.

    Returns:
        "ready", "incomplete" or "missing" for a published dataset; "built in" or "yours" for others.
    """
    if not issubclass(dataset, PublishedDataset):
        return "built in" if hasattr(dataset, "info") else "yours"
    folder = data / dataset.dataset_dir
    complete = [source.is_there(folder) for source in dataset.sources]
    if all(complete):
        return "ready"
    return "incomplete" if folder.is_dir() and any(complete) else "missing"


def few_shot_names(data: str | Path) -> list[str]:
    """Return the prepared datasets for few-shot runs, which have training images and no long tail.

    If none is prepared, they are those of the package: averages with published datasets would mean nothing.

    Args:
        data: the folder of all datasets.
    """
    found: dict[str, list[str]] = {"ready": [], "built in": []}
    for name in config.names("datasets"):
        dataset, layer = dataset_class(name), dict(config.flatten(config.dataset_layer(name)[1]))
        info = getattr(dataset, "info", None)
        suits = info and info.train and not layer.get("DATASET.LONGTAIL", False)
        if suits:
            found.setdefault(state(dataset, expand(data)), []).append(name)
    return found["ready"] or found["built in"]


def table(data: str | Path) -> str:
    """Return a table of all datasets with state, classes, images, download size, unverified files and licence."""
    data, rows = expand(data), []
    for name in config.names("datasets"):
        dataset = dataset_class(name)
        info = getattr(dataset, "info", None)
        facts = (f"{info.classes:,}", f"{info.images:,}", info.size) if info else ("", "", "")
        facts = (*facts, unverified(dataset), info.licence if info else "")
        rows.append((name, state(dataset, data), *facts))
    order = ("built in", "ready", "incomplete", "missing", "yours")
    rows.sort(key=lambda row: order.index(row[1]))  # stable: by name within a state
    header = ("dataset", "state", "classes", "images", "download", "unverified", "licence")
    align = ("left", "left", "right", "right", "right", "right", "left")
    return tabulate(rows, header, tablefmt="github", colalign=align, disable_numparse=True)


def unverified(dataset: type[DatasetBase]) -> str:
    """Return how many files to download have no known checksum, such as "1 of 3"; "" if all have one."""
    sources = [source for source in getattr(dataset, "sources", ()) if source.urls]
    count = sum(not source.checksum for source in sources)
    return f"{count} of {len(sources)}" if count else ""


def download(name: str, data: str | Path) -> None:
    """Download, check and lay out a published dataset below ``data``; existing files are kept.

    Raises:
        FileNotFoundError: a file has to be downloaded by hand; the message has the URL and the target.
        ValueError: see `unskew.download.install.prepare`; a target has fewer images than published.
        OSError: see `unskew.download.install.prepare`.
    """
    dataset = dataset_class(name)
    if not issubclass(dataset, PublishedDataset):
        logger.info(f"'{name}' needs no download: it is {state(dataset, Path(data))}")
        return
    folder = expand(data) / dataset.dataset_dir
    there = [source for source in dataset.sources if source.is_there(folder)]
    complete = len(there) == len(dataset.sources)
    check(folder, there, dataset.info.images if complete else 0, EXTENSIONS)
    by_hand = [source for source in dataset.sources if not source.urls]
    prepare(folder, [source for source in dataset.sources if source.urls and not source.is_there(folder)])
    dataset.arrange(folder)
    prepare(folder, [source for source in by_hand if not source.is_there(folder)])
