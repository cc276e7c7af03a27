"""Tests of archives: the content is unpacked unchanged, and no file is written outside the folder."""

import errno
import gzip
import io
import os
import random
import stat
import sys
import tarfile
import zipfile

import pytest

from unskew.download import archives
from unskew.download.archives import extract

FILES = {"images/a.jpg": b"a" * 3000, "images/deep/b.jpg": b"", "labels.txt": b"cat\n" * 200}


def member(name, kind=tarfile.REGTYPE, link="", size=0):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def write_tar(path, *members, mode="w"):
    """Members are names with bytes, or TarInfo without content."""
    with tarfile.open(path, mode) as tar:
        for item in members:
            if isinstance(item, tarfile.TarInfo):
                tar.addfile(item)
            else:
                tar.addfile(member(item[0], size=len(item[1])), io.BytesIO(item[1]))
    return path


def write_zip(path, *members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def write(path, files=FILES):
    if path.suffix == ".zip":
        return write_zip(path, *files.items())
    return write_tar(path, *files.items(), mode="w" if path.suffix == ".tar" else "w:gz")


def content_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(archive, folder, message, **options):
    """The archive is refused with a message of one line and leaves no file."""
    before = sorted(folder.parent.iterdir())
    with pytest.raises(ValueError, match=message) as caught:
        extract(archive, folder, **options)
    assert "\n" not in str(caught.value)
    assert archive.name in str(caught.value)
    assert sorted(folder.parent.iterdir()) == before


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz", "a.zip"])
def test_an_archive_is_unpacked_unchanged(tmp_path, name):
    extract(write(tmp_path / name), tmp_path / "out")
    assert content_of(tmp_path / "out") == FILES


def test_files_are_readable_whatever_the_archive_says(tmp_path):
    locked, folder = member("x/a.txt"), member("x", tarfile.DIRTYPE)
    locked.mode = folder.mode = 0
    locked.uid = 12345
    extract(write_tar(tmp_path / "a.tar", folder, locked), tmp_path / "out")
    for path in (tmp_path / "out" / "x", tmp_path / "out" / "x" / "a.txt"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600
        assert path.stat().st_uid == os.getuid()


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
def test_files_of_macos_are_skipped(tmp_path, name):
    junk = {"__MACOSX/images/._a.jpg": b"1", "images/._a.jpg": b"2", "images/.DS_Store": b"3"}
    extract(write(tmp_path / name, {**FILES, **junk}), tmp_path / "out")
    assert content_of(tmp_path / "out") == FILES
    assert not (tmp_path / "out" / "__MACOSX").exists()


def test_a_folder_that_is_not_empty_is_left_as_it_is(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        extract(write(tmp_path / "a.zip"), tmp_path / "out")
    assert content_of(tmp_path / "out") == {"mine": b"mine"}


# --- members that lead out of the folder ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
@pytest.mark.parametrize("name", ["../evil", "images/../../evil", "/tmp/evil", "..\\evil"])
def test_paths_out_of_the_folder_are_refused(tmp_path, suffix, name):
    archive = write(tmp_path / f"a{suffix}", {"good": b"1", name: b"2"})
    refused(archive, tmp_path / "out", "evil")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../../../etc/passwd"])
def test_links_out_of_the_folder_are_refused(tmp_path, kind, target):
    archive = write_tar(tmp_path / "a.tar", member("folder/link", kind, target))
    refused(archive, tmp_path / "out", "link")


def test_no_file_is_written_through_a_link(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    # Each link alone stays inside the folder; together they lead to the parent.
    chain = [member("a", tarfile.SYMTYPE, "."), member("b", tarfile.SYMTYPE, "a/..")]
    archive = write_tar(tmp_path / "a.tar", *chain, ("b/outside/evil", b"2"))
    refused(archive, tmp_path / "out", "leads nowhere")
    archive = write_tar(tmp_path / "a.tar", *chain, member("b/outside/evil", tarfile.SYMTYPE, "x"))
    refused(archive, tmp_path / "out", "out of the folder")
    assert not list(outside.iterdir())


def test_links_inside_the_folder_are_kept(tmp_path):
    links = [member("images/s.jpg", tarfile.SYMTYPE, "../a.jpg"), member("images/h.jpg", tarfile.LNKTYPE, "a.jpg")]
    extract(write_tar(tmp_path / "a.tar", ("a.jpg", b"picture"), *links), tmp_path / "out")
    assert (tmp_path / "out" / "images" / "s.jpg").is_symlink()
    assert set(content_of(tmp_path / "out").values()) == {b"picture"}
    assert len(content_of(tmp_path / "out")) == 3


def test_a_link_to_nothing_is_refused(tmp_path):
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        refused(write_tar(tmp_path / "a.tar", member("link", kind, "nothing")), tmp_path / "out", "leads nowhere")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_are_refused(tmp_path, kind):
    refused(write_tar(tmp_path / "a.tar", member("device", kind)), tmp_path / "out", "special file")


def test_a_link_in_a_zip_is_refused(tmp_path):
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    refused(write_zip(tmp_path / "a.zip", (info, "/etc/passwd")), tmp_path / "out", "link")


def test_a_zip_name_that_python_would_clean_is_refused(tmp_path):
    archive = write(tmp_path / "a.zip", {"good.jpg?.exe": b"1"})
    archive.write_bytes(archive.read_bytes().replace(b"?", b"\0"))
    refused(archive, tmp_path / "out", r"good\.jpg")


def test_python_without_the_data_filter_is_reported(tmp_path, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")
    refused(write(tmp_path / "a.tar"), tmp_path / "out", r"Python 3\.10\.12")


# --- bombs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
def test_a_bomb_is_stopped(tmp_path, name):
    archive = write(tmp_path / name, {"zeros": bytes(5_000_000)})
    refused(archive, tmp_path / "out", "4000000 bytes", limit=4_000_000)
    extract(archive, tmp_path / "out", limit=5_000_000)


def test_a_bomb_that_lies_about_its_size_is_stopped(tmp_path):
    """Both headers of the member say 10 bytes."""
    archive = write(tmp_path / "a.zip", {"zeros": bytes(5_000_000)})
    content = archive.read_bytes()
    size = (5_000_000).to_bytes(4, "little")
    assert content.count(size) == 2
    archive.write_bytes(content.replace(size, (10).to_bytes(4, "little")))
    refused(archive, tmp_path / "out", "damaged|more than", limit=1000)


def test_a_bomb_of_many_copies_is_stopped_while_it_is_written(tmp_path):
    links = [member(f"copy{i}", tarfile.LNKTYPE, "file") for i in range(50)]
    archive = write_tar(tmp_path / "a.tar", ("file", bytes(1000)), *links)
    refused(archive, tmp_path / "out", "20000 bytes", limit=20_000)


def test_a_bomb_behind_the_last_member_is_stopped(tmp_path):
    content = write(tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(content + bytes(5_000_000)))
    refused(tmp_path / "a.tar.gz", tmp_path / "out", "100000 bytes", limit=100_000)


# --- damage --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
def test_a_cut_archive_is_noticed_wherever_it_is_cut(tmp_path, name):
    noise = random.Random(0)
    files = {f"{i}.jpg": noise.randbytes(1000) for i in range(4)}
    content = write(tmp_path / name, files).read_bytes()
    end = 4 * (512 + 1024) if name == "a.tar" else len(content)  # behind it is the end mark only
    # Of a .tar also at the borders between members, where tarfile itself sees a good end.
    for cut in {0, 3, 512, 1000, 1536, 1600, 3072, end // 2, end - 1, end if name == "a.tar" else 4}:
        (tmp_path / "cut").mkdir(exist_ok=True)
        (tmp_path / "cut" / name).write_bytes(content[:cut])
        refused(tmp_path / "cut" / name, tmp_path / "cut" / "out", "damaged")


def test_damage_in_the_middle_is_noticed(tmp_path):
    noise = random.Random(0)
    files = {f"{i}.jpg": noise.randbytes(1000) for i in range(4)}
    places = {"a.tar": 1536 + 150, "a.tar.gz": 2000, "a.zip": 2000}  # of the .tar, a header
    for name, place in places.items():
        archive = write(tmp_path / name, files)
        content = bytearray(archive.read_bytes())
        content[place] ^= 0xFF
        archive.write_bytes(content)
        refused(archive, tmp_path / "out", "damaged")


def test_a_web_page_is_no_archive(tmp_path):
    for name in ("a.zip", "a.tar.gz"):
        (tmp_path / name).write_bytes(b"<!DOCTYPE html><html>Sorry</html>" * 100)
        refused(tmp_path / name, tmp_path / "out", "damaged")


def test_a_full_disk_is_reported_and_the_folder_removed(tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(archives, "open", lambda path, mode: Full(path, mode), raising=False)
    with pytest.raises(OSError, match=r"'.*a.tar': No space left on device"):
        extract(write(tmp_path / "a.tar"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_zip_that_does_not_fit_on_the_disk_is_not_unpacked(tmp_path, monkeypatch):
    usage = archives.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(OSError, match=r"3800 .* 100;"):
        extract(write(tmp_path / "a.zip"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
def test_work_grows_linearly_with_the_number_of_files(tmp_path, suffix):
    """Counted in calls, as seconds depend on what else the machine does."""
    calls = []
    for count in (100, 800):
        archive = write(tmp_path / f"{count}{suffix}", {f"d{i % 10}/{i}.jpg": b"x" for i in range(count)})
        events = []
        sys.setprofile(lambda frame, event, what, events=events: events.append(1))
        try:
            extract(archive, tmp_path / f"out{count}")
        finally:
            sys.setprofile(None)
        calls.append(len(events))
    assert calls[1] < 8.5 * calls[0]


@pytest.mark.parametrize("name", ["", "/", "."])
def test_a_zip_member_without_a_name_is_refused(tmp_path, name):
    path = write_zip(tmp_path / "a.zip", ("x" * max(1, len(name)), b"content"))
    path.write_bytes(path.read_bytes().replace(b"x" * max(1, len(name)), name.encode() or b"\0"))
    refused(path, tmp_path / "new", "a.zip")


def test_a_zip_directory_with_an_empty_name_is_refused(tmp_path):
    """An empty name is an IndexError in Python's reader."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("x")
        info.filename = ""
        archive.writestr(info, b"content")
    refused(tmp_path / "a.zip", tmp_path / "new", "a.zip")


def test_a_pipe_is_no_archive(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(ValueError, match="pipe"):
        extract(tmp_path / "a.tar", tmp_path / "new")
