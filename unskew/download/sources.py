"""The published facts of a dataset: its numbers, and where its files come from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ALGORITHMS = ("md5", "sha256")


@dataclass(frozen=True)
class Source:
    """One file of a dataset, and where it comes from.

    Attributes:
        name: file name below the dataset's folder; a person may put the file there.
        urls: tried in order; "drive:ID" is a file of Google Drive. Without any it is fetched by hand.
        makes: of an archive: file or folder in it -> path below the dataset's folder; "." is all of it.
            Empty: the file itself stays, under its name.
        checksum: "md5:..." or "sha256:...", if known.
        size: bytes; 0 if unknown.
        page: the web page where a person finds it.
        elsewhere: paths from the dataset's folder, such as "../imagenet/classnames.txt"; where one is there, the
            source is not needed.
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
        object.__setattr__(self, "makes", tuple(dict(self.makes).items()))  # pairs, so that it can be hashed
        if self.checksum and self.checksum.partition(":")[0] not in ALGORITHMS:
            raise ValueError(f"the checksum of {self.name} must start with 'md5:' or 'sha256:'; got '{self.checksum}'")

    @property
    def targets(self) -> tuple[str, ...]:
        """What it leaves below the dataset's folder."""
        return tuple(target for _, target in self.makes) or (self.name,)

    def is_there(self, folder: Path) -> bool:
        """Whether a dataset's folder has all that it leaves."""
        return all(_holds(folder / target) for target in self.targets) or any(
            _holds(folder / place) for place in self.elsewhere
        )


def _holds(path: Path) -> bool:
    """Whether it is a file, or a folder with anything in it."""
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


@dataclass(frozen=True)
class DatasetInfo:
    """The published numbers of a dataset.

    Attributes:
        classes: how many; of a test-only set, those that its images have.
        train, val, test: images; 0 where there is no such split.
        size: what has to be downloaded, "0.8 GB".
        licence: a note, a few words.
        page: the dataset's home, for people.
        per_class: images of every class, by split, where they are the same number.
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
        return self.train + self.val + self.test
