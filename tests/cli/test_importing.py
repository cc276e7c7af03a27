"""The commands `unskew data import`: their output, their errors, and a run on an imported set."""

import io
import json
import os
import subprocess
import sys
import tarfile

import pytest
from pictures import EACH, TEMPLATE, digits

from unskew.cli.main import main
from unskew.runs.run import load_run


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def shard(path, images):
    with tarfile.open(path, "w") as tar:
        for number, (label, content) in enumerate(images):
            for end, data in (("png", content), ("cls", str(label).encode())):
                info = tarfile.TarInfo(f"{number:04d}.{end}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_a_zero_shot_run_on_an_imported_set(capsys):
    """The embedded world's digits, as a tar."""
    images = [(name, png(image)) for name, _, image in digits()]
    splits = {"train": images[::3], "test": images[1::3] + images[2::3]}
    for split, content in splits.items():
        shard(f"{split}.tar", content)
    assert main(["data", "import", "webdataset", "{train,test}.tar", "--out", "out"]) == 0
    assert "unskew data verify folder --root out" in capsys.readouterr().out
    assert main(["data", "import", "webdataset", "train.tar", "test.tar", "--out", "out"]) == 0
    assert "imported earlier" in capsys.readouterr().out
    assert main(["data", "verify", "folder", "--root", "out"]) == 0
    words = ["train", "-d", "folder", "--root", "out", "-t", "ZeroshotCLIP", "-b", "micro", "--shots", "1"]
    assert main([*words, "--output-dir", "run", "DATASET.TEMPLATE", TEMPLATE]) == 0
    run = load_run("run")
    assert run.metrics["accuracy"] > 60 and len(run.predictions["labels"]) == 10 * EACH * 2 // 3


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["webdataset", "none.tar", "--out", "out"], "none.tar"),
        (["webdataset", "a.tar", "--out", "out"], "a.tar"),
        (["torchvision", "Nothing", "--out", "out"], "Nothing"),
        (["hf", "/none", "--out", "out"], "/none"),
        (["hf", "a.tar", "--out", "a.tar"], "--out"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, match, capsys, tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar")
    assert main(["data", "import", *words]) == 2
    error = capsys.readouterr().err
    assert match in error and error.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["a.tar"]


def test_the_folder_must_be_given(capsys):
    with pytest.raises(SystemExit):
        main(["data", "import", "hf", "x"])
    assert "--out" in capsys.readouterr().err


def test_tars_are_imported_without_torch(tmp_path):
    shard("train.tar", [(label, b"x") for label in (0, 1)])
    code = (
        "import json, sys\n"
        "from unskew.cli.main import main\n"
        "code = main(['data', 'import', 'webdataset', 'train.tar', '--out', 'out'])\n"
        "print(json.dumps([code, sorted(sys.modules)]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found, modules = json.loads(done.stdout.splitlines()[-1])
    assert found == 0 and not {"torch", "torchvision", "datasets", "pyarrow", "scipy"} & set(modules)
