"""Import of Hugging Face datasets from files that the tests write; nothing reaches a network."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from import_sources import FORMATS, images, import_images, manifest, picture
from trees import load

from unskew.data.importing import huggingface
from unskew.data.importing.formats import file_bytes
from unskew.data.importing.huggingface import HuggingFace

datasets = pytest.importorskip("datasets")
datasets.disable_progress_bars()

NAMES = ["a/b", "cat", "dog"]
FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})


@pytest.fixture(autouse=True)
def _own_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))


def pictures(first: int, count: int) -> list[bytes]:
    return [picture(first + n, FORMATS[n % len(FORMATS)]) for n in range(count)]


CONTENT = {"train": pictures(0, 12), "validation": pictures(100, 3), "test": pictures(200, 6)}


def table(content, labels=None, features=FEATURES, **columns):
    """Return rows with the images of a split; the labels take turns."""
    cells = [content_ and {"bytes": content_, "path": None} for content_ in content]
    labels = [n % 3 for n in range(len(content))] if labels is None else labels
    return datasets.Dataset.from_dict({"image": cells, "label": labels, **columns}, features=features)


def splits():
    return datasets.DatasetDict({split: table(content) for split, content in CONTENT.items()})


def expected():
    ours = {"train": "train", "validation": "val", "test": "test"}
    folders = ("a_b", "cat", "dog")
    return {
        f"{ours[split]}/{folders[label]}": content[label::3]
        for split, content in CONTENT.items()
        for label in range(3)
    }  # fmt: skip


def saved(folder):
    splits().save_to_disk(folder)


def parquet(folder):
    (folder / "data").mkdir(parents=True)
    for split, rows in splits().items():
        rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\nSome images.\n")


@pytest.mark.parametrize("write", [saved, parquet])
def test_a_local_folder_of_arrow_or_parquet(write, tmp_path):
    write(tmp_path / "set")
    import_images(HuggingFace(str(tmp_path / "set")), tmp_path / "out")
    assert images(tmp_path / "out") == expected()
    assert load("folder", tmp_path / "out").classnames == NAMES
    found = manifest(tmp_path / "out")
    assert [facts["from"] for facts in found["splits"].values()] == ["train", "validation", "test"]
    assert found["features"]["image"]["column"] == "image" and "ClassLabel" in found["features"]["label"]["type"]
    assert found["versions"]["datasets"] == datasets.__version__
    assert found.get("licence") == ("cc-by-4.0" if write is parquet else None)
    assert import_images(HuggingFace(str(tmp_path / "set")), tmp_path / "out")[1] is False
    assert not list((tmp_path / "hf").rglob("*.arrow"))  # no copy in the library's cache


@pytest.mark.parametrize("write", [saved, parquet])
def test_splits_that_number_their_classes_differently_are_refused(write, tmp_path):
    """The library takes the class names of the first file for all of them."""
    write(tmp_path / "set")
    names = datasets.Features({**FEATURES, "label": datasets.ClassLabel(names=NAMES[::-1])})
    rows = table(CONTENT["test"], features=names)
    if write is saved:
        datasets.DatasetDict({**splits(), "test": rows}).save_to_disk(tmp_path / "set")
    else:
        rows.to_parquet(tmp_path / "set" / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"test.*label 0"):
        import_images(HuggingFace(str(tmp_path / "set")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "split"), [("train.parquet", "train"), ("my-test-1.parquet", "test"), ("images.arrow", "train")]
)
def test_a_single_file(name, split, tmp_path):
    rows = table(CONTENT["train"])
    if name.endswith(".arrow"):
        rows.save_to_disk(tmp_path / "saved")
        (path,) = (tmp_path / "saved").glob("*.arrow")
        path.rename(tmp_path / name)
    else:
        rows.to_parquet(tmp_path / name)
    import_images(HuggingFace(str(tmp_path / name)), tmp_path / "out")
    assert images(tmp_path / "out") == {
        folder.replace("train", split): content
        for folder, content in expected().items()
        if folder.startswith("train")
    }  # fmt: skip


def test_parquet_of_another_writer_has_words_as_labels(tmp_path):
    """Without the library's own description of the features."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = pictures(0, 6)
    words = ["cat", "dog"] * 3
    cells = pa.array([{"bytes": image, "path": f"{n}.jpeg"} for n, image in enumerate(content)])
    pq.write_table(pa.table({"picture": cells, "kind": words, "width": [1.5] * 6}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"picture": pa.array(content, pa.binary()), "kind": words}), tmp_path / "b.parquet")
    for name, end in (("a", ".jpeg"), ("b", ".jpg")):
        import_images(HuggingFace(str(tmp_path / f"{name}.parquet")), tmp_path / name)
        assert images(tmp_path / name) == {"train/cat": content[::2], "train/dog": content[1::2]}
        assert (tmp_path / name / "train" / "cat" / f"00000000{end}").exists()


def test_several_possible_columns_need_a_flag(tmp_path):
    features = datasets.Features(
        {**FEATURES, "thumb": datasets.Image(), "coarse": datasets.ClassLabel(names=["pet", "wild"])}
    )
    thumbs = [{"bytes": image, "path": None} for image in pictures(300, 6)]
    table(CONTENT["test"], features=features, thumb=thumbs, coarse=[n % 2 for n in range(6)]).save_to_disk(
        tmp_path / "set"
    )
    for flags, match in (({}, "image, thumb"), ({"image_column": "thumb"}, "label, coarse")):
        with pytest.raises(ValueError, match=match):
            import_images(HuggingFace(str(tmp_path / "set"), **flags), tmp_path / "out")
    for flags, match in (({"image_column": "label"}, "ClassLabel"), ({"image_column": "nothing"}, "'nothing'")):
        with pytest.raises(ValueError, match=match):
            import_images(HuggingFace(str(tmp_path / "set"), **flags), tmp_path / "out")
    import_images(HuggingFace(str(tmp_path / "set"), "", "thumb", "coarse"), tmp_path / "out")
    assert images(tmp_path / "out") == {"train/pet": pictures(300, 6)[::2], "train/wild": pictures(300, 6)[1::2]}


def test_hidden_labels_of_test_images_and_empty_splits_are_left_out(tmp_path, warned):
    (tmp_path / "set").mkdir()
    rows = {"train": table(CONTENT["train"]), "test": table(CONTENT["test"], [-1] * 6), "validation": table([])}
    for split, split_rows in rows.items():
        split_rows.to_parquet(tmp_path / "set" / f"{split}.parquet")
    import_images(HuggingFace(str(tmp_path / "set")), tmp_path / "out")
    assert set(manifest(tmp_path / "out")["splits"]) == {"train"}
    assert any("6 image(s) have no label" in line for line in warned())
    assert any("'validation'" in line and "no images" in line for line in warned())


def test_a_cell_without_an_image_is_left_out_and_a_path_must_be_that_of_an_image(tmp_path, monkeypatch):
    missing = [None, *CONTENT["test"][1:]]
    table(missing).save_to_disk(tmp_path / "set")
    import_images(HuggingFace(str(tmp_path / "set")), tmp_path / "out")
    assert manifest(tmp_path / "out")["splits"]["train"]["without image"] == 1
    (tmp_path / "1.jpg").write_bytes(picture(1))
    (tmp_path / "secret").write_bytes(b"secret")
    for name, good in (("1.jpg", True), ("secret", False), ("none.jpg", False)):
        cell = {"bytes": None, "path": str(tmp_path / name)}
        if good:
            assert huggingface._stored(cell).content == Path(cell["path"])
        else:
            with pytest.raises(ValueError, match=name):
                huggingface._stored(cell)


def test_damaged_files_are_one_line(tmp_path):
    parquet(tmp_path / "set")
    (path,) = (tmp_path / "set").rglob("train-*.parquet")
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"PAR1" * 10, b"", content[:1000] + b"\xff" * 500 + content[1500:]):
        path.write_bytes(damaged)
        with pytest.raises((ValueError, OSError)) as error:
            import_images(HuggingFace(str(tmp_path / "set")), tmp_path / "out")
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
        assert not (tmp_path / "out").exists()


def test_code_and_files_of_other_kinds_are_refused(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "csv").mkdir()
    for folder in ("set", "csv"):
        (tmp_path / folder / "a.csv").write_text("image,label\n1.jpg,0\n")
    (tmp_path / "a.pkl").write_bytes(b"x")
    for source, match in (("set", "set.py"), ("csv", "kind csv"), ("a.pkl", "a.pkl.*parquet")):
        with pytest.raises(ValueError, match=match) as error:
            import_images(HuggingFace(str(tmp_path / source)), tmp_path / "out")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_a_changed_source_is_not_the_finished_one(tmp_path):
    saved(tmp_path / "set")
    import_images(HuggingFace(str(tmp_path / "set")), tmp_path / "out")
    (tmp_path / "set" / "more").write_text("x")
    with pytest.raises(ValueError, match="files"):
        import_images(HuggingFace(str(tmp_path / "set")), tmp_path / "out")


# --- the hub -----------------------------------------------------------------------------------------


def test_a_name_on_the_hub_is_read_at_its_revision(tmp_path, monkeypatch):
    """The hub's answer and its files are ours."""
    parquet(tmp_path / "set")
    real, asked = datasets.load_dataset_builder, []

    def builder(name, config, revision):
        asked.append((name, config, revision))
        return real(str(tmp_path / "set"))

    info = SimpleNamespace(sha="0123abc", card_data=SimpleNamespace(license="mit"))
    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    monkeypatch.setattr("huggingface_hub.dataset_info", lambda name: info)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    import_images(HuggingFace("some/pets", "small"), tmp_path / "out")
    assert images(tmp_path / "out") == expected() and asked == [("some/pets", "small", "0123abc")]
    found = manifest(tmp_path / "out")
    assert (found["revision"], found["licence"], found["identity"]["config"]) == ("0123abc", "mit", "small")
    monkeypatch.setattr("huggingface_hub.dataset_info", None)  # a finished import asks for nothing
    assert import_images(HuggingFace("some/pets", "small"), tmp_path / "out")[1] is False


def test_without_a_network_a_name_is_one_line(tmp_path, monkeypatch):
    def unreachable(*_):
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.dataset_info", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(ValueError, match=r"some/pets.*not known.*HF_HUB_OFFLINE") as error:
        import_images(HuggingFace("some/pets"), tmp_path / "out")
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="no/such/folder"):
        HuggingFace("/no/such/folder")


def test_a_missing_package_is_one_line_with_the_command(tmp_path, monkeypatch):
    saved(tmp_path / "set")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'unskew\[import\]'"):
        import_images(HuggingFace(str(tmp_path / "set")), tmp_path / "out")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(tmp_path):
    """60 MB of images are written by a process that may use 40 MB for them."""
    noise = [b"x" * 10_000_000 + bytes([n]) for n in range(6)]
    table(noise, [0, 1] * 3).save_to_disk(tmp_path / "set", num_shards=6)
    code = (
        "import resource, sys, datasets, PIL.Image\n"
        "from unskew.data.importing import import_images\n"
        "from unskew.data.importing.huggingface import HuggingFace\n"
        "from unskew.data.importing import write\n"
        "write.find_unreadable = lambda paths: {}\n"
        "source = HuggingFace(sys.argv[1])\n"
        "read = lambda: int(open('/proc/self/status').read().split('RssAnon:')[1].split()[0])\n"
        "before, most = read(), [0]\n"
        "real = write._put\n"
        "def put(*args, **options):\n"
        "    real(*args, **options)\n"
        "    most.append(read())\n"
        "write._put = put\n"
        "import_images(source, sys.argv[2])\n"
        "print(max(most) - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "set"), str(tmp_path / "out")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 40_000, done.stdout


def test_the_bytes_of_an_image_keep_the_extension_of_their_name():
    cell = {"bytes": picture(1, "PNG"), "path": "folder/bird.JPEG"}
    assert file_bytes(huggingface._stored(cell)) == (".jpeg", cell["bytes"])
