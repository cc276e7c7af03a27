"""The published facts of a dataset: its numbers, its files and their URLs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ALGORITHMS = ("md5", "sha256")


@dataclass(frozen=True)
class Source:
    """One file of a dataset and its mirrors.

    Attributes:
        name: file name below the dataset's folder; the user may put the file there.
        urls: mirrors in the order to try; "drive:ID" is a file on Google Drive. A source without URLs has to be
            downloaded by hand.
        makes: for an archive: file or folder in it -> path below the dataset's folder; "." is the whole archive.
            Empty: the file itself is the target.
        checksum: "md5:..." or "sha256:...", if known.
        size: bytes; 0 if unknown.
        page: the web page for a download by hand.
        elsewhere: paths relative to the dataset's folder, such as "../imagenet/classnames.txt"; if one of them
            exists, the source is not needed.
    """

    name: str
    urls: tuple[str, ...] = ()
    makes: Mapping[str, str] | tuple[tuple[str, str], ...] = ()
    checksum: str = ""
    size: int = 0
    page: str = ""
    elsewhere: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "urls", (self.urls,) if isinstance(self.urls, str) else tuple(self.urls))
        object.__setattr__(self, "makes", tuple(dict(self.makes).items()))  # hashable
        if self.checksum and self.checksum.partition(":")[0] not in ALGORITHMS:
            raise ValueError(f"the checksum of {self.name} must start with 'md5:' or 'sha256:'; got '{self.checksum}'")

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The pairs (archive member, target) of ``makes``."""
        return tuple(dict(self.makes).items())

    @property
    def targets(self) -> tuple[str, ...]:
        """The paths below the dataset's folder that the source makes."""
        return tuple(target for _, target in self.pairs) or (self.name,)

    def is_there(self, folder: Path) -> bool:
        """Return whether a dataset's folder has all targets, or one of ``elsewhere`` exists."""
        return all(has_content(folder / target) for target in self.targets) or any(
            has_content(folder / place) for place in self.elsewhere
        )


def has_content(path: Path) -> bool:
    """Return whether the path is a file or a folder that is not empty."""
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


@dataclass(frozen=True)
class DatasetInfo:
    """The published numbers of a dataset.

    Attributes:
        classes: number of classes; for a test-only set, of the classes that have images.
        train: number of training images; 0 if there is no such split.
        val: number of validation images.
        test: number of test images.
        size: size of the download, such as "0.8 GB".
        licence: a few words on the licence.
        page: the dataset's home page.
        per_class: images per class, for the splits in which all classes have the same number.
    """

    classes: int
    train: int
    val: int
    test: int
    size: str
    licence: str
    page: str
    per_class: Mapping[str, int] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """The number of images in all splits."""
        return self.train + self.val + self.test
