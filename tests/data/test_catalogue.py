"""Tests of `unskew data list | prepare | verify` on a small EuroSAT from a local server."""

import functools
import http.server
import shutil
import threading
import zipfile

import pytest
from PIL import Image

from unskew import config
from unskew.cli import main
from unskew.data.catalogue import dataset_class
from unskew.download.sources import DatasetInfo, Source
from unskew.utils.files import write_json

FOLDERS = {"AnnualCrop": "Annual Crop Land", "Forest": "Forest"}


@pytest.fixture
def server(tmp_path):
    """A served folder and its URL."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    handler.log_message = lambda *_: None
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def eurosat(server, tmp_path, monkeypatch):
    """EuroSAT with 2 classes of 4 images and a split file, from the server."""
    folder, url = server
    split = {"train": [], "val": [], "test": []}
    with zipfile.ZipFile(folder / "EuroSAT.zip", "w") as archive:
        for label, (name, classname) in enumerate(FOLDERS.items()):
            for number, part in enumerate(("train", "train", "val", "test"), start=1):
                Image.new("RGB", (8, 8), (label * 90, number * 40, 0)).save(tmp_path / "image.jpg")
                archive.write(tmp_path / "image.jpg", f"2750/{name}/{name}_{number}.jpg")
                split[part].append([f"{name}/{name}_{number}.jpg", label, classname])
    write_json(split, folder / "split_zhou_EuroSAT.json")
    dataset = dataset_class("eurosat")
    sources = (
        Source("EuroSAT.zip", (f"{url}/EuroSAT.zip",), makes={"2750": "2750"}),
        Source("split_zhou_EuroSAT.json", (f"{url}/split_zhou_EuroSAT.json",)),
    )
    monkeypatch.setattr(dataset, "sources", sources)
    monkeypatch.setattr(dataset, "info", DatasetInfo(2, 4, 2, 2, "1 kB", "MIT", "", {"train": 2}))
    return dataset


def run(capsys, *words):
    code = main.main(["data", *words])
    output = capsys.readouterr()
    return code, output.out, output.err


def row_of(table: str, name: str) -> list[str]:
    (line,) = (line for line in table.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_list_has_every_dataset_with_its_numbers(tmp_path, capsys):
    code, out, _ = run(capsys, "list", "--root", str(tmp_path))
    assert code == 0
    for name in config.names("datasets"):
        row = row_of(out, name)
        assert row[1] in ("built in", "yours", "missing")
    assert row_of(out, "eurosat") == ["eurosat", "missing", "10", "27,000", "0.1 GB", "", "MIT"]
    assert row_of(out, "digits")[1] == "built in" and row_of(out, "folder")[1] == "yours"


def test_after_prepare_a_dataset_is_ready_and_verified(eurosat, tmp_path, capsys):
    root = str(tmp_path / "data")
    code, out, _ = run(capsys, "prepare", "eurosat", "--root", root)
    assert code == 0 and "8" in out.splitlines()[-1]
    assert row_of(run(capsys, "list", "--root", root)[1], "eurosat")[1] == "ready"
    (tmp_path / "served" / "EuroSAT.zip").unlink()  # the second call must not need the server
    assert run(capsys, "prepare", "eurosat", "--root", root)[0] == 0
    assert sorted(path.name for path in (tmp_path / "data" / "eurosat").iterdir() if path.name[0] != ".") == [
        "2750",
        "split_zhou_EuroSAT.json",
    ]


def test_an_incomplete_dataset_is_listed_as_incomplete(eurosat, tmp_path, capsys):
    root = str(tmp_path / "data")
    run(capsys, "prepare", "eurosat", "--root", root)
    (tmp_path / "data" / "eurosat" / "split_zhou_EuroSAT.json").unlink()
    assert row_of(run(capsys, "list", "--root", root)[1], "eurosat")[1] == "incomplete"


def test_verify_names_missing_and_broken_images(eurosat, tmp_path, capsys):
    root = tmp_path / "data"
    run(capsys, "prepare", "eurosat", "--root", str(root))
    forest = root / "eurosat" / "2750" / "Forest"
    (forest / "Forest_1.jpg").unlink()
    whole = (forest / "Forest_2.jpg").read_bytes()
    (forest / "Forest_2.jpg").write_bytes(whole[: len(whole) // 2])
    code, out, err = run(capsys, "verify", "eurosat", "--root", str(root), "--full")
    assert code == 2 and "1 image(s) missing, 1 of 7 " in err
    assert f"'{forest / 'Forest_1.jpg'}' is missing" in out and "Forest_2.jpg' cannot be read" in out


def test_verify_compares_with_the_published_numbers(eurosat, tmp_path, monkeypatch, capsys):
    root = str(tmp_path / "data")
    run(capsys, "prepare", "eurosat", "--root", root)
    monkeypatch.setattr(eurosat, "info", DatasetInfo(3, 5, 2, 2, "", "", "", {"train": 4}))
    code, out, err = run(capsys, "verify", "eurosat", "--root", root)
    assert code == 2 and "4 wrong number(s)" in err
    assert "2 classes; published are 3" in out and "train: 4 images; published are 5" in out
    assert "train: class 1 has 2 images; published are 4" in out


def test_verify_finds_an_image_in_two_splits(eurosat, tmp_path, capsys):
    root = str(tmp_path / "data")
    run(capsys, "prepare", "eurosat", "--root", root)
    monkeypatch = pytest.MonkeyPatch()
    splits = eurosat.splits
    monkeypatch.setattr(eurosat, "splits", lambda cfg, root: (*splits(cfg, root)[:2], splits(cfg, root)[0]))
    code, out, _ = run(capsys, "verify", "eurosat", "--root", root)
    monkeypatch.undo()
    assert code == 2 and out.count("is named 2 times") == 4


def test_only_the_first_problems_are_shown_without_full(eurosat, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("unskew.data.verify.SHOWN", 2)
    root = tmp_path / "data"
    run(capsys, "prepare", "eurosat", "--root", str(root))
    for path in (root / "eurosat" / "2750" / "Forest").iterdir():
        path.unlink()
    out = run(capsys, "verify", "eurosat", "--root", str(root))[1]
    assert out.count("is missing") == 2 and "... and 2 more; --full lists all" in out
    assert run(capsys, "verify", "eurosat", "--root", str(root), "--full")[1].count("is missing") == 4


@pytest.mark.parametrize(
    "name",
    [
        "digits",
        "shapes",
        "patterns",
        "shapes_lt",
        "digits_lt",
        "shapes_shifted",
        "emoji",
        "emoji_lt",
        "emoji_shifted",
        "emoji_unseen",
    ],
)
def test_the_numbers_of_the_built_in_datasets_are_right(name, data_root, capsys):
    code, out, err = run(capsys, "verify", name, "--root", data_root)
    assert code == 0, out + err


def test_a_built_in_dataset_needs_no_download(data_root, capsys):
    assert run(capsys, "prepare", "digits", "--root", data_root)[0] == 0


@pytest.mark.parametrize("command", ["prepare", "verify"])
def test_similar_names_are_suggested_for_an_unknown_dataset(command, capsys):
    code, _, err = run(capsys, command, "eurosta")
    assert code == 2 and "mean eurosat" in err


def test_the_error_for_a_missing_dataset_has_the_command_that_downloads_it(tmp_path, capsys):
    code, _, err = run(capsys, "verify", "dtd", "--root", str(tmp_path))
    assert code == 2 and f"data prepare dtd --root {tmp_path}" in err


def test_the_error_lists_files_to_download_by_hand(tmp_path, capsys, monkeypatch):
    imagenet = dataset_class("imagenet")
    monkeypatch.setattr(imagenet, "sources", [source for source in imagenet.sources if not source.urls])
    code, _, err = run(capsys, "prepare", "imagenet", "--root", str(tmp_path))
    assert code == 2 and "ILSVRC2012_img_train.tar" in err and "ILSVRC2012_img_val.tar" in err
    assert "image-net.org" in err and f"'{tmp_path / 'imagenet' / 'ILSVRC2012_img_val.tar'}'" in err


def test_sources_without_a_checksum_are_marked(tmp_path, capsys):
    _, out, _ = run(capsys, "list", "--root", str(tmp_path))
    marked = {name: row_of(out, name)[5] for name in config.names("datasets")}
    for name in config.names("datasets"):
        files = [source for source in getattr(dataset_class(name), "sources", ()) if source.urls]
        without = sum(not source.checksum for source in files)
        assert marked[name] == (f"{without} of {len(files)}" if without else "")
    assert marked["eurosat"] == marked["fgvc_aircraft"] == marked["digits"] == "" and marked["imagenet_a"] == "1 of 2"
    assert "nverified" in out.splitlines()[-2]


def test_every_source_has_a_url_or_a_page():
    for name in config.names("datasets"):
        dataset = dataset_class(name)
        for source in getattr(dataset, "sources", ()):
            assert source.urls or source.page, (name, source.name)
            assert all(url.startswith(("https://", "drive:")) for url in source.urls), source.urls
            assert not any(target.startswith("/") for target in source.targets)
        if hasattr(dataset, "sources"):
            assert dataset.info.images > 0 and dataset.info.licence and dataset.info.page


def test_prepare_names_the_folder_of_empty_images(eurosat, tmp_path, capsys):
    root = tmp_path / "data"
    run(capsys, "prepare", "eurosat", "--root", str(root))
    folder = root / "eurosat" / "2750"
    for path in folder.rglob("*.jpg"):
        path.write_bytes(b"")
    code, _, err = run(capsys, "prepare", "eurosat", "--root", str(root))
    assert code == 2 and f"'{folder}' is damaged: 8 of its 8 files are empty" in err
    shutil.rmtree(folder)
    assert run(capsys, "prepare", "eurosat", "--root", str(root))[0] == 0
    (root / "eurosat" / ".prepared.json").unlink()  # as if the user had put the files there
    (folder / "Forest" / "Forest_1.jpg").unlink()
    code, _, err = run(capsys, "prepare", "eurosat", "--root", str(root))
    assert code == 2 and f"'{folder}' is not complete" in err and " 7 images" in err and " 8 are published" in err
