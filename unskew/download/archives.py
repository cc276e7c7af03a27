"""Safe unpacking of archives: no file outside the folder, and a limit on the unpacked size."""

import gzip
import os
import platform
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from tqdm import tqdm

from unskew.utils.errors import DAMAGE, check_regular, format_error

CHUNK = 2**20

_Stream = IO[bytes] | gzip.GzipFile


class _RefusedError(Exception):
    """An archive holds a member that is not allowed."""


class _Member(NamedTuple):
    """A folder, a file (``stream``) or a symbolic link (``link``) of an archive, at ``parts`` below its top."""

    parts: tuple[str, ...]
    stream: IO[bytes] | None = None
    link: str = ""


def extract(archive: str | Path, folder: str | Path, *, limit: int | None = None) -> None:
    """Unpack a .tar, .tar.gz or .zip into a new or empty folder; remove the folder if that fails.

    Files that macOS adds (``__MACOSX``, ``._*``, ``.DS_Store``) are skipped. Owners, times and permissions are those of
    new files.

    Args:
        archive: the archive's path.
        folder: the folder to unpack into.
        limit: largest unpacked size in bytes; default 20 times the archive's size plus 1 GiB.

    Raises:
        ValueError: the archive is damaged, cut short or of another kind, exceeds ``limit``, or has a member that is
            not a file, folder or link inside the folder.
        OSError: the disk is full.
    """
    archive, folder = Path(archive), Path(folder)
    size = check_regular(archive)
    limit = 20 * size + 2**30 if limit is None else limit
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"'{archive}' was not unpacked: '{folder}' is not empty; give a new folder")
    name = f"unpack {archive.name.lstrip('.')}"
    bar = tqdm(total=size, desc=name, unit="B", unit_scale=True, leave=False, disable=None)
    try:
        with archive.open("rb") as file, bar:
            # The position in the archive shows the progress; the unpacked size may be unknown.
            _write(_members(file, folder, limit), folder, limit, lambda: bar.update(max(0, file.tell() - bar.n)))
    except BaseException as error:  # also for an interrupt: an incomplete folder is useless
        shutil.rmtree(folder, ignore_errors=True)
        explained = _explain(error, archive)
        if explained is None:
            raise
        raise explained from error


def _explain(error: BaseException, archive: Path, action: str = "unpack") -> Exception | None:
    """Return an error that names the archive, or ``None`` if the error is not about the archive."""
    if isinstance(error, _RefusedError | tarfile.FilterError):
        return ValueError(f"'{archive}' was not {action}{'ed' if action == 'unpack' else ''}: {error}")
    if isinstance(error, OSError) and error.errno:
        advice = "make room on the disk and run the same command again" if action == "unpack" else "replace it"
        reason = f"cannot {action} '{archive}': {error.strerror}; {advice}"
        return type(error)(error.errno, reason)
    if isinstance(error, gzip.BadGzipFile) or (isinstance(error, DAMAGE) and not isinstance(error, OSError)):
        reason = format_error(error)
        return ValueError(f"'{archive}' is damaged, cut short or no .tar, .tar.gz or .zip archive ({reason})")
    return None


# --- writing -------------------------------------------------------------------------------------------


def _write(members: Iterable[_Member], folder: Path, limit: int, advance: Callable[[], object]) -> None:
    left = limit
    created: set[str] = set()
    links: list[tuple[str, str]] = []
    for member in members:
        path = os.path.join(folder, *member.parts)
        if member.link:
            links.append((path, member.link))
            continue
        parent = path if member.stream is None else os.path.dirname(path)
        if parent not in created:
            os.makedirs(parent, exist_ok=True)
            created.add(parent)
        if member.stream is None:
            continue
        if not member.parts:
            raise _RefusedError("it holds a file without a name")
        with open(path, "wb") as target:
            while chunk := member.stream.read(CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise _too_much(limit)
                target.write(chunk)
                advance()
    _link(links, os.path.realpath(folder))


def _too_much(limit: int) -> _RefusedError:
    return _RefusedError(f"it unpacks to more than {limit} bytes")


def _link(links: list[tuple[str, str]], root: str) -> None:
    """Create the symbolic links after all files, so that no file is written through a link.

    Each link is resolved before the next one is created, so that none is created through a link that leads out.
    """
    for path, link in links:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            os.symlink(link, path)
            target = os.path.realpath(path, strict=True)
        except OSError as error:
            raise _RefusedError(f"its link {os.path.basename(path)!r} to {link!r} leads nowhere") from error
        if os.path.commonpath([target, root]) != root:
            raise _RefusedError(f"its link {os.path.basename(path)!r} to {link!r} leads out of the folder")


# --- reading -------------------------------------------------------------------------------------------


def _members(file: IO[bytes], folder: Path, limit: int) -> Iterator[_Member]:
    start = file.read(4)
    file.seek(0)
    if start.startswith(b"PK"):
        return _zip_members(file, folder, limit)
    if start.startswith(b"\x1f\x8b"):
        return _tar_members(gzip.GzipFile(fileobj=file), folder, limit)
    return _tar_members(file, folder, limit)


def _is_junk(name: str) -> bool:
    top, _, _ = name.partition("/")
    last = name.rstrip("/").rpartition("/")[2]
    return top == "__MACOSX" or last.startswith("._") or last == ".DS_Store"


def _parts(name: str) -> tuple[str, ...]:
    """Split a member's path; refuse one that could lead out of the folder."""
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if name.startswith("/") or os.path.isabs(name) or ".." in parts or "\\" in name or "\0" in name:
        raise _RefusedError(f"it holds {name!r}, which is not a path inside the folder")
    return parts


class _StrictTarInfo(tarfile.TarInfo):
    """A header reader that raises for damage; tarfile's own one takes a damaged header for the end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_StrictTarInfo":
        """Read the next header."""
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # zeros that end the archive; not in typeshed
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def _tar_members(file: _Stream, folder: Path, limit: int) -> Iterator[_Member]:
    if not hasattr(tarfile, "data_filter"):
        needed = "Python 3.10.12, 3.11.4 or newer"
        raise _RefusedError(f"unpacking tar files safely needs {needed}; this is Python {platform.python_version()}")
    with file, tarfile.open(fileobj=file, mode="r|", tarinfo=_StrictTarInfo) as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # frees memory; not in typeshed
            if _is_junk(member.name):
                continue
            parts = _parts(member.name)
            tarfile.data_filter(member, os.fspath(folder))  # raises for devices and for links that lead out
            if member.isdir():
                yield _Member(parts)
            elif member.issym():
                yield _Member(parts, link=member.linkname)
            elif member.islnk():
                with _open_linked(member, folder) as stream:
                    yield _Member(parts, stream)
            elif content := tar.extractfile(member):
                with content:
                    yield _Member(parts, content)
        _read_to_end(file, limit)


def _open_linked(member: tarfile.TarInfo, folder: Path) -> IO[bytes]:
    """Open the target of a hard link, a file that is unpacked already; the link becomes a copy."""
    path = folder.joinpath(*_parts(member.linkname))
    if not path.is_file():
        raise _RefusedError(f"its link {member.name!r} to {member.linkname!r} leads nowhere")
    return path.open("rb")


def _read_to_end(file: _Stream, limit: int) -> None:
    """Read past the last member to verify the checksum at the end of a .gz."""
    left = limit
    while block := file.read(CHUNK):
        left -= len(block)
        if left < 0:
            raise _too_much(limit)


def _zip_members(file: IO[bytes], folder: Path, limit: int) -> Iterator[_Member]:
    with zipfile.ZipFile(file) as archive:
        members = [member for member in archive.infolist() if not _is_junk(member.filename)]
        needed, free = sum(member.file_size for member in members), shutil.disk_usage(folder).free
        if needed > limit:
            raise _too_much(limit)
        if needed > free:
            raise OSError(f"'{folder}' needs {needed} bytes and the disk has {free}; make room on the disk")
        for member in members:
            parts = _parts(member.orig_filename)  # zipfile has cleaned filename
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _RefusedError(f"it holds {member.filename!r}, which is a link or a device")
            if member.flag_bits & 1:
                raise _RefusedError(f"{member.filename!r} is encrypted")
            if member.is_dir():
                yield _Member(parts)
            else:
                with archive.open(member) as stream:
                    yield _Member(parts, stream)


# --- the files of a tar, without unpacking it ---------------------------------------------------------


def read_tar(archive: str | Path, wanted: Callable[[str], bool], largest: int) -> Iterator[tuple[str, bytes | None]]:
    """Yield the name of each file in a .tar or .tar.gz, with its content if it is wanted. Nothing is written.

    Files that macOS adds are skipped.

    Args:
        archive: the archive's path.
        wanted: tells of a name whether to read the file.
        largest: largest size of a wanted file in bytes.

    Raises:
        ValueError: the archive is damaged, cut short or of another kind, unpacks to too much, or has a member that is
            larger than ``largest``, no file or folder, or outside the archive by its path.
    """
    limit = 20 * check_regular(archive) + 2**30
    try:
        with open(archive, "rb") as file:
            stream: _Stream = gzip.GzipFile(fileobj=file) if file.read(2) == b"\x1f\x8b" else file
            file.seek(0)
            yield from _tar_contents(stream, wanted, largest, limit)
    except Exception as error:
        explained = _explain(error, Path(archive), "read")
        if explained is None:
            raise
        raise explained from error


def _tar_contents(
    file: _Stream, wanted: Callable[[str], bool], largest: int, limit: int
) -> Iterator[tuple[str, bytes | None]]:
    left = limit
    with file, tarfile.open(fileobj=file, mode="r|", tarinfo=_StrictTarInfo) as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # frees memory; not in typeshed
            if _is_junk(member.name) or member.isdir():
                continue
            _parts(member.name)
            if not member.isreg() or member.issparse():
                raise _RefusedError(f"it holds {member.name!r}, which is a link, a device or a file with holes")
            left -= member.size
            if left < 0:
                raise _too_much(limit)
            if not wanted(member.name):
                yield member.name, None
                continue
            if member.size > largest:
                raise _RefusedError(f"it holds {member.name!r} with {member.size} bytes; at most {largest} are read")
            content = tar.extractfile(member)
            yield member.name, content.read() if content else b""
        _read_to_end(file, limit)
