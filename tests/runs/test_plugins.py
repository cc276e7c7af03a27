"""Datasets and trainers as people write them for Dassl, in files of their own."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from plugin_traces import as_a_process

from unskew import config
from unskew.cli.main import main
from unskew.config import plugins as declared
from unskew.engine import fingerprint
from unskew.engine.run_dir import backbone_label, trainer_label
from unskew.engine.trainer import TRAINER_REGISTRY
from unskew.runs import plugins
from unskew.runs.run import Run, execute, load_run
from unskew.utils import logging

# Reads mypets/train/red/0.png.
DATASET = """
    import os

    from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
    from dassl.utils import listdir_nohidden


    @DATASET_REGISTRY.register()
    class MyPets(DatasetBase):
        dataset_dir = "mypets"

        def __init__(self, cfg):
            self.dataset_dir = os.path.join(os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT)), self.dataset_dir)
            shots = cfg.DATASET.NUM_SHOTS
            train = self.generate_fewshot_dataset(self.read("train"), num_shots=shots)
            val = self.generate_fewshot_dataset(self.read("val"), num_shots=min(shots, 4))
            super().__init__(train_x=train, val=val, test=self.read("test"))

        def read(self, split):
            folder, items = os.path.join(self.dataset_dir, split), []
            for label, name in enumerate(listdir_nohidden(folder, sort=True)):
                for image in listdir_nohidden(os.path.join(folder, name), sort=True):
                    items.append(Datum(impath=os.path.join(folder, name, image), label=label, classname=name))
            return items
"""

# Classifies by a linear map of the image's colours.
TRAINER = """
    from torch import nn
    from torch.nn import functional as F

    from dassl.engine import TRAINER_REGISTRY, TrainerX
    from dassl.metrics import compute_accuracy
    from dassl.optim import build_lr_scheduler, build_optimizer


    @TRAINER_REGISTRY.register()
    class Tiny(TrainerX):
        def check_cfg(self, cfg):
            assert cfg.TRAINER.TINY.WIDTH > 0

        def build_model(self):
            width = self.cfg.TRAINER.TINY.WIDTH
            linear = nn.Linear(3 * width**2, self.num_classes)
            self.model = nn.Sequential(nn.AdaptiveAvgPool2d(width), nn.Flatten(), linear).to(self.device)
            self.optim = build_optimizer(self.model, self.cfg.OPTIM)
            self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
            self.register_model("model", self.model, self.optim, self.sched)

        def forward_backward(self, batch):
            image, label = self.parse_batch_train(batch)
            output = self.model(image)
            loss = F.cross_entropy(output, label)
            self.model_backward_and_update(loss)
            if (self.batch_idx + 1) == self.num_batches:
                self.update_lr()
            return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}

        def parse_batch_train(self, batch):
            return batch["img"].to(self.device), batch["label"].to(self.device)
"""

EXTEND_CFG = """
    def extend_cfg(cfg):
        from yacs.config import CfgNode as CN

        cfg.TRAINER.TINY = CN()
        cfg.TRAINER.TINY.WIDTH = 1
"""

NOTHING = """
    from dassl.data.datasets import DATASET_REGISTRY

    DATASET_REGISTRY.register({name!r}, type({name!r}, (), {{"__module__": __name__}}))
"""

QUICK = ["OPTIM.MAX_EPOCH", "2", "DATALOADER.NUM_WORKERS", "0", "INPUT.VIEWS", "1", "INPUT.SIZE", "(16, 16)"]
LEARNS = [*QUICK, "OPTIM.LR", "0.1", "DATALOADER.TRAIN_X.BATCH_SIZE", "4"]


@pytest.fixture(autouse=True)
def _nothing_stays(tmp_path):
    with as_a_process(tmp_path):
        yield


def write(path: Path, *parts: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(dedent(part) for part in parts))
    return str(path)


@pytest.fixture
def pets(tmp_path):
    """A folder of datasets with `MyPets`: three colours."""
    rng = np.random.default_rng(0)
    for split, images in (("train", 6), ("val", 4), ("test", 6)):
        for channel, name in enumerate(("red", "green", "blue")):
            folder = tmp_path / "data" / "mypets" / split / name
            folder.mkdir(parents=True)
            for number in range(images):
                pixels = rng.integers(0, 120, (16, 16, 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return str(tmp_path / "data")


@pytest.fixture
def mine(tmp_path):
    """Both in one file, with the trainer's keys."""
    return write(tmp_path / "mine.py", EXTEND_CFG, DATASET, TRAINER)


def metrics_in(folder) -> dict:
    return json.loads((Path(folder) / "metrics.json").read_text())


def failure(capsys, *argv) -> str:
    """Return the one line on stderr of a command that ends with exit code 2."""
    assert main(argv) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    return said


# --- ours over theirs, theirs over ours --------------------------------------------------------------


def test_our_trainer_on_their_dataset_in_a_process_of_its_own(pets, tmp_path):
    """The dataset knows nothing of templates."""
    plugin, where = write(tmp_path / "mypets.py", DATASET), tmp_path / "run"
    argv = ["train", "--plugin", plugin, "-d", "MyPets", "-t", "GLA", "--backbone", "micro", "--shots", "4"]
    argv += ["--root", pets, "--output-dir", str(where), *QUICK, "DATASET.TEMPLATE", "a {} square."]
    done = subprocess.run([sys.executable, "-m", "unskew.cli", *argv], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    metrics = metrics_in(where)
    assert (metrics["dataset"], metrics["trainer"], metrics["shots"]) == ("MyPets", "GLA", 4)
    assert metrics["gla_accuracy"] > 60
    log = (where / "log.txt").read_text()
    assert f"Plugin: {plugin}" in log
    assert "# train_x  12" in log  # drawn as asked


def test_their_trainer_on_our_dataset_by_sweep_then_the_table(mine, data_root, tmp_path, capsys):
    output = str(tmp_path / "out")
    argv = ["sweep", "--plugin", mine, "-d", "digits", "-t", "Tiny", "ZeroshotCLIP", "--shots", "2"]
    argv += ["--seeds", "1", "2", "--root", data_root, "--output", output]
    assert main([*argv, "--opts", *QUICK, "TRAINER.TINY.WIDTH", "2"]) == 0
    rows = [metrics_in(tmp_path / "out/digits/Tiny/micro_2shots" / f"seed{seed}") for seed in (1, 2)]
    assert [row["seed"] for row in rows] == [1, 2]
    assert all(0 < row["accuracy"] < 60 and len(row["per_class_accuracy"]) == 10 for row in rows)
    assert all(row["trained_parameters"] == (3 * 2**2 + 1) * 10 and row["peak_memory_mb"] > 0 for row in rows)
    assert not any("images_encoded" in row for row in rows)  # it has an image model of its own
    table = (tmp_path / "out/digits/Tiny/micro_2shots/seed1/history.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in table] == ["epoch", "1", "2"] and all(table[1].split(",")[:4])
    capsys.readouterr()
    with as_a_process(tmp_path):
        assert main(["table", output]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[-2:]] == ["Tiny", "ZeroshotCLIP"]


# Our digits, with the labels of the classes in reverse order.
REVERSED = """
    from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
    from unskew import config
    from unskew.data.dataset import build_dataset


    @DATASET_REGISTRY.register()
    class ReversedDigits(DatasetBase):
        def __init__(self, cfg):
            ours = config.load("digits", trainer="CoOp", opts=["DATASET.ROOT", cfg.DATASET.ROOT])
            dataset, splits = build_dataset(ours), {}
            for split in ("train_x", "val", "test"):
                items = getattr(dataset, split)
                splits[split] = [Datum(item.impath, 9 - item.label, 0, item.classname) for item in items]
            train = self.generate_fewshot_dataset(splits.pop("train_x"), num_shots=cfg.DATASET.NUM_SHOTS)
            super().__init__(train_x=train, **splits)
"""


def test_the_zero_shot_half_over_their_trainer_has_the_accuracy_of_zero_shot_clip(data_root, tmp_path):
    """The half has its own preprocessing and the names of the plugin's classes, in the order of their labels."""
    plugin, alone, over = write(tmp_path / "mine.py", EXTEND_CFG, REVERSED, TRAINER), tmp_path / "zs", tmp_path / "gla"
    argv = ["train", "-b", "micro", "--shots", "2", "--root", data_root]
    assert main([*argv, "-d", "digits", "-t", "ZeroshotCLIP", "--output-dir", str(alone)]) == 0
    argv += ["--plugin", plugin, "-d", "ReversedDigits", "-t", "GLA", "--output-dir", str(over), *LEARNS]
    assert main([*argv, "TRAINER.GLA.BASE", "Tiny", "DATASET.TEMPLATE", "a photo of the digit {}."]) == 0
    zeroshot, gla = metrics_in(alone), metrics_in(over)
    assert gla["classnames"] == zeroshot["classnames"][::-1]
    assert gla["zs_accuracy"] == pytest.approx(zeroshot["accuracy"]) and zeroshot["accuracy"] > 60


def test_both_and_their_trainer_below_ours(mine, pets, tmp_path, capsys):
    run, over = str(tmp_path / "run"), str(tmp_path / "over")
    argv = ["train", "--plugin", mine, "-d", "MyPets", "-b", "micro", "--root", pets, "--shots", "4"]
    assert main([*argv, "-t", "Tiny", "--output-dir", run, *LEARNS]) == 0
    assert metrics_in(run)["accuracy"] > 60
    assert main([*argv, "-t", "GLA", "--output-dir", over, *LEARNS, "TRAINER.GLA.BASE", "Tiny"]) == 0
    assert metrics_in(over)["ft_accuracy"] > 60
    capsys.readouterr()
    assert main([*argv, "-t", "Tiny", "--eval-only", "--model-dir", run, *LEARNS]) == 0
    assert f"* accuracy: {metrics_in(run)['accuracy']:.1f}%" in capsys.readouterr().out


@pytest.mark.parametrize(("split", "trainer"), [("val", "GLA"), ("val", "Backdoor"), ("train", "DebiasedZeroshot")])
def test_nothing_of_ours_is_fitted_on_test_images_that_a_dataset_gives_twice(
    split, trainer, pets, tmp_path, capsys, monkeypatch
):
    """As val CoOp's ImageNet does, as training images its variants do."""
    monkeypatch.setattr(logging, "_warned", set())
    plugin = write(tmp_path / "mypets.py", DATASET.replace(f'self.read("{split}")', 'self.read("test")'))
    argv = ["train", "--plugin", plugin, "-d", "MyPets", "-t", trainer, "--root", pets]
    argv += ["--output-dir", str(tmp_path / "run"), *QUICK, "MODEL.BACKBONE.NAME", "micro"]
    argv += ["TRAINER.BACKDOOR.MEMBERS", "['micro']", "TRAINER.BACKDOOR.WEIGHTS", "val"]
    assert re.search("no val split|only test images", failure(capsys, *argv))
    log = (tmp_path / "run" / "log.txt").read_text()
    kept = {"val": "val", "train": "train_x"}[split]
    assert log.count(f"{kept} of 'MyPets' has test images: this run has no {kept}") == 1


def test_an_evaluator_of_ones_own_may_know_nothing_of_ours(pets, tmp_path):
    own = """
        import numpy as np
        from dassl.evaluation.build import EVALUATOR_REGISTRY


        @EVALUATOR_REGISTRY.register()
        class Counts:
            def __init__(self, cfg, lab2cname=None):
                pass

            def reset(self):
                self.right = []

            def process(self, mo, gt):
                self.right += (mo.argmax(1) == gt).tolist()

            def evaluate(self):
                return {"accuracy": np.float32(100 * np.mean(self.right))}
    """
    plugin = write(tmp_path / "mine.py", EXTEND_CFG, DATASET, TRAINER, own)
    opts = (*LEARNS, "TEST.EVALUATOR", "Counts")
    run = Run("MyPets", "Tiny", "micro", 4, 1, pets, folder=str(tmp_path / "run"), opts=opts, plugins=(plugin,))
    assert execute(run, console=False)["accuracy"] == metrics_in(tmp_path / "run")["accuracy"] > 60


def test_an_assertion_of_a_trainer_is_a_mistake_in_one_line(pets, tmp_path, capsys):
    plugin = write(tmp_path / "mine.py", EXTEND_CFG, DATASET, TRAINER)
    argv = ["train", "--plugin", plugin, "-d", "MyPets", "-t", "Tiny", "-b", "micro", "--root", pets]
    argv += ["--output-dir", str(tmp_path / "run"), *QUICK, "TRAINER.TINY.WIDTH", "0"]
    assert failure(capsys, *argv) == "unskew: error: Tiny refuses the config: an assertion failed"


@pytest.mark.parametrize("given", ["", "."])
def test_a_folder_that_is_no_package_is_no_plugin(given, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "there is no plugin file" in failure(capsys, "train", "--plugin", given, "-d", "digits", "-t", "CoOp")


def test_a_trainer_that_tests_by_itself_has_its_accuracy(pets, tmp_path):
    test = "Tiny.test = lambda self, split=None: 12.5"
    plugin = write(tmp_path / "mine.py", EXTEND_CFG, DATASET, TRAINER, test)
    run = Run("MyPets", "Tiny", "micro", 2, 1, pets, folder=str(tmp_path / "run"), opts=(*QUICK,), plugins=(plugin,))
    assert execute(run, console=False)["accuracy"] == 12.5


# --- where plugins are found -------------------------------------------------------------------------


def test_a_script_with_packages_beside_it_brings_what_these_register(tmp_path, pets):
    """As CoOp's repository is made, whose packages are called as our folders."""
    root = tmp_path / "theirs"
    for package in ("datasets", "trainers", "clip"):
        write(root / package / "__init__.py", "")
    write(root / "clip" / "clip.py", "SIZE = 16")
    write(root / "datasets" / "base.py", DATASET)
    child = "from .base import MyPets\n\n@DATASET_REGISTRY.register()\nclass MorePets(MyPets):\n    pass\n"
    write(root / "datasets" / "more.py", "from dassl.data.datasets import DATASET_REGISTRY", child)
    write(root / "trainers" / "tiny.py", "from clip import clip", TRAINER)
    imports = "import datasets.more\nimport trainers.tiny\nfrom dassl.config import get_cfg_default"
    guard = "if __name__ == '__main__':\n    raise SystemExit(1)"
    script = write(root / "train.py", imports, EXTEND_CFG, guard)
    plugins.load([script])
    assert sorted(declared.names("datasets")) == ["MorePets", "MyPets"]
    assert declared.names("trainers") == ["Tiny"]
    assert config.load("MorePets", "micro", "Tiny").TRAINER.TINY.WIDTH == 1


def test_a_package_with_the_name_of_another_plugins_is_named(tmp_path):
    for file in ("first/datasets/__init__.py", "first/datasets/pets.py", "second/datasets/more.py"):
        write(tmp_path / file, "")
    first = write(tmp_path / "first" / "a.py", "import datasets.pets")
    second = write(tmp_path / "second" / "b.py", "import datasets.more")
    with pytest.raises(ValueError, match=r"b\.py' needs its own package 'datasets'.*first"):
        plugins.load([first, second])


def test_an_installed_package_with_the_name_of_theirs_may_be_loaded(tmp_path, monkeypatch):
    """As the package `datasets` of Hugging Face, if the process has imported it before CoOp's."""
    installed = ModuleType("datasets")
    installed.__file__ = str(tmp_path / "installed" / "datasets.py")
    monkeypatch.setitem(sys.modules, "datasets", installed)
    write(tmp_path / "theirs" / "datasets" / "more.py", "NAME = 'theirs'")
    plugins.load([write(tmp_path / "theirs" / "train.py", "import datasets.more")])
    assert sys.modules["train"].datasets.more.NAME == "theirs"
    import datasets

    assert datasets is installed


@pytest.mark.parametrize("given", ["theirs/datasets/more.py", "theirs/datasets/", "theirs.datasets.more"])
def test_a_file_of_a_package_a_package_and_a_module(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "theirs" / "__init__.py", "")
    write(tmp_path / "theirs" / "datasets" / "__init__.py", "from . import more")
    write(tmp_path / "theirs" / "datasets" / "names.py", "NAME = 'Found'")
    register = NOTHING.format(name="NAME").replace("'NAME'", "NAME")
    write(tmp_path / "theirs" / "datasets" / "more.py", "from .names import NAME", register)
    plugins.load([given])
    assert declared.names("datasets") == ["Found"]
    assert "theirs.datasets.more" in sys.modules


def test_one_file_is_loaded_once_whatever_it_is_called(tmp_path, monkeypatch, warned):
    monkeypatch.chdir(tmp_path)
    counts = "import os\n\nos.environ['TIMES'] = os.environ.get('TIMES', '') + 'x'"
    write(tmp_path / "mine.py", counts, NOTHING.format(name="Mine"))
    monkeypatch.setenv("TIMES", "")
    plugins.load(["mine.py", "./mine.py"])
    plugins.load([str(tmp_path / "mine.py")])
    plugins.load(["mine"])
    assert os.environ["TIMES"] == "x"
    assert declared.names("datasets") == ["Mine"]
    assert warned() == []


def test_two_plugins(tmp_path, warned):
    paths = [write(tmp_path / f"{n}_pets.py", NOTHING.format(name=n), NOTHING.format(name="both")) for n in "ab"]
    plugins.load(paths)
    assert declared.names("datasets") == ["a", "both", "b"]
    assert warned() == [f"plugin '{paths[1]}': its dataset both (of b_pets) is left out, since a_pets has that name"]


def test_two_files_that_would_be_one_module(tmp_path):
    paths = [write(tmp_path / folder / "train.py", NOTHING.format(name=folder)) for folder in "ab"]
    with pytest.raises(ValueError, match=f"plugin '{paths[1]}' would be the module 'train'"):
        plugins.load(paths)
    with pytest.raises(ValueError, match="would be the module 'json'"):
        plugins.load([write(tmp_path / "json.py", "")])


def test_a_class_with_a_name_of_ours_is_left_out_and_said(tmp_path, warned):
    theirs = "TRAINER_REGISTRY.register('CoOp', type('CoOp', (Tiny,), {'__module__': __name__}))"
    plugin = write(tmp_path / "mine.py", EXTEND_CFG, TRAINER, theirs)
    plugins.load([plugin])
    assert TRAINER_REGISTRY.get("CoOp").__module__ == "unskew.trainers.coop"
    assert declared.names("trainers") == ["Tiny"]
    assert warned() == [
        f"plugin '{plugin}': its trainer CoOp (of mine) is left out, since unskew.trainers.coop has that name"
    ]


def test_a_dataset_with_the_name_of_one_of_dassls_replaces_it(tmp_path, warned):
    from unskew.data.dataset import DATASET_REGISTRY

    plugin = write(tmp_path / "mine.py", DATASET.replace("MyPets", "PACS"))
    plugins.load([plugin])
    assert DATASET_REGISTRY.get("PACS").__module__ == "mine"
    assert (declared.names("datasets"), warned()) == (["PACS"], [])


def test_a_plugin_that_registers_nothing_gives_a_warning(tmp_path, warned):
    plugins.load([write(tmp_path / "nothing.py", "x = 1")])
    assert warned() == [f"plugin '{tmp_path / 'nothing.py'}' registers no dataset and no trainer"]


# --- mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\ny = z\n", ["NameError: name 'z' is not defined", "mine.py, line 2"]),
        ("x = (\n", ["SyntaxError: '(' was never closed", "mine.py, line 1"]),
        ("\nimport no_such_thing\n", ["No module named 'no_such_thing'", "mine.py, line 2"]),
        ("from dassl.engine import Nobody\n", ["cannot import name 'Nobody'", "mine.py, line 1"]),
        ("raise KeyError('one\\ntwo')\n", ["KeyError", "mine.py, line 1"]),
        ("import sys\nsys.exit(3)\n", ["SystemExit: 3", "mine.py, line 2"]),
        ("from theirs import x\n", ["ZeroDivisionError", "theirs.py, line 1"]),
    ],
)
def test_a_plugin_that_fails_is_one_line(text, words, tmp_path, capsys, monkeypatch):
    plugin = write(tmp_path / "mine.py", text)
    write(tmp_path / "theirs.py", "x = 1 / 0")
    said = failure(capsys, "train", "--plugin", plugin, "-d", "digits", "-t", "GLA")
    assert all(word in said for word in [f"plugin '{plugin}' fails", *words])
    monkeypatch.setenv("UNSKEW_DEBUG", "1")
    with pytest.raises(ValueError, match="fails"):
        main(["sweep", "--plugin", plugin, "-d", "digits", "-t", "GLA"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("nowhere.py", "there is no plugin file"),
        ("./nowhere", "there is no plugin file"),
        ("nowhere", "no module 'nowhere'"),
        ("nowhere.at_all", "no module 'nowhere.at_all'"),
        ("./my.own.py", "a plugin is a file such as mine.py"),
        ("./notes.txt", "a plugin is a file such as mine.py"),
    ],
)
def test_a_plugin_that_is_not_there(given, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("my.own.py", "notes.txt"):
        write(tmp_path / name, "")
    assert words in failure(capsys, "train", "--plugin", given, "-d", "digits", "-t", "GLA")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["-d", "MyPet", "-t", "GLA"], "did you mean MyPets?"),
        (["-d", "MyPets", "-t", "Tinny"], "did you mean Tiny?"),
        (["-d", "MyPets", "-t", "Tiny"], "'MyPets' has no default backbone: give one, such as --backbone"),
        (["-d", "MyPets", "-t", "Tiny", "-b", "micr"], "did you mean micro"),
        (["-d", "digits", "-t", "Tiny", "TRAINER.TINY.WITH", "3"], "did you mean TRAINER.TINY.WIDTH"),
    ],
)
def test_names_near_a_plugins(argv, words, mine, capsys):
    assert words in failure(capsys, "train", "--plugin", mine, *argv)


@pytest.mark.parametrize("value", ["3", "None", "{'N_CTX': object()}", "[1, 2]"])
def test_defaults_that_are_no_config_keys_are_one_line(value, tmp_path, capsys):
    plugin = write(tmp_path / "mine.py", TRAINER, f"def defaults():\n    return {value}\n")
    error = failure(capsys, "train", "--plugin", plugin, "-d", "digits", "-t", "Tiny")
    assert plugin in error and "defaults()" in error


def test_a_yaml_beside_a_plugin_is_reported(tmp_path, warned):
    write(tmp_path / "Tiny.yaml", "OPTIM: {MAX_EPOCH: 2}")
    plugins.load([write(tmp_path / "mine.py", EXTEND_CFG, TRAINER)])
    assert len(warned()) == 1 and "Tiny.yaml" in warned()[0] and "--config-file" in warned()[0]


def test_a_run_of_an_unknown_plugin_names_the_flag(mine, data_root, tmp_path):
    run = Run("digits", "Tiny", shots=1, root=data_root, folder=str(tmp_path / "run"), opts=QUICK, plugins=(mine,))
    with as_a_process(tmp_path):
        execute(run, console=False)
    loaded = load_run(tmp_path / "run")
    with pytest.raises(ValueError, match="--plugin"):
        loaded.config  # noqa: B018
    assert replace(loaded, plugins=(mine,)).config.TRAINER.TINY.WIDTH == 1


# --- config ------------------------------------------------------------------------------------------


def test_keys_of_ours_keep_their_values(tmp_path, warned):
    extend = """
        def extend_cfg(cfg):
            from yacs.config import CfgNode as CN

            cfg.TRAINER.COOP = CN()
            cfg.TRAINER.COOP.N_CTX = "four"
            cfg.TRAINER.COOP.CSC = False
            cfg.TRAINER.COOP.PREC = "fp16"
            cfg.DATASET.NUM_SHOTS = 1
            cfg.MINE = CN()
            cfg.MINE.NONE = None
    """
    plugin = write(tmp_path / "mine.py", extend, TRAINER)
    plugins.load([plugin])
    cfg = config.load("digits", trainer="Tiny")
    ours = config.load("digits", trainer="GLA")
    assert cfg.TRAINER.COOP == {**ours.TRAINER.COOP, "PREC": "fp16"}
    assert (cfg.DATASET.NUM_SHOTS, cfg.MINE.NONE) == (-1, None)
    assert warned() == [
        f"plugin '{plugin}' sets keys that keep their values here: DATASET.NUM_SHOTS 1 (here -1), "
        "TRAINER.COOP.N_CTX 'four' (here 16)"
    ]


def test_defaults_beside_a_trainer_as_ours_have_them(tmp_path):
    defaults = """
        from yacs.config import CfgNode

        from unskew.trainers.coop import CoOp
        from unskew.engine.trainer import TRAINER_REGISTRY


        def defaults():
            return CfgNode({"DEPTH": 3})


        @TRAINER_REGISTRY.register()
        class Deeper(CoOp):
            pass
    """
    plugins.load([write(tmp_path / "mine.py", defaults)])
    assert config.load("digits", trainer="Deeper", opts=("TRAINER.DEEPER.DEPTH", "4")).TRAINER.DEEPER.DEPTH == 4


SUBCLASSES = """
    from unskew.engine.trainer import TRAINER_REGISTRY
    from unskew.trainers.ensemble import Ensemble


    def defaults():
        return {"BASE": "CoOp", "BASE_DIR": "", "TEMPERATURE": "confidence"}


    @TRAINER_REGISTRY.register()
    class MyEnsemble(Ensemble):
        pass
"""

MORE_SUBCLASSES = """
    from unskew.engine.trainer import TRAINER_REGISTRY
    from unskew.trainers.backdoor import Backdoor
    from unskew.trainers.finetune import FineTune
    from unskew.trainers.gla import GLA


    class Unregistered(GLA):
        pass


    for name, base in (("MyGLA", Unregistered), ("MyFineTune", FineTune), ("MyBackdoor", Backdoor)):
        TRAINER_REGISTRY.register(name, type(name, (base,), {"__module__": __name__}))
    TRAINER_REGISTRY.register("MyGLA2", type("MyGLA2", (TRAINER_REGISTRY.get("MyGLA"),), {"__module__": __name__}))
"""


@pytest.mark.parametrize("dataset", ["digits", "digits_lt", "eurosat"])
def test_a_subclass_has_the_config_layers_of_its_class_and_of_its_base(dataset, tmp_path):
    plugins.load([write(tmp_path / "one.py", SUBCLASSES), write(tmp_path / "more.py", MORE_SUBCLASSES)])

    def layers(trainer, *opts):
        cfg = config.load(dataset, "micro", trainer, ("DATASET.NUM_SHOTS", 16, *opts))
        return {node: value for node, value in cfg.items() if node != "TRAINER"}

    for ours, theirs in (("GLA", "MyGLA"), ("GLA", "MyGLA2"), ("FineTune", "MyFineTune"), ("Backdoor", "MyBackdoor")):
        assert layers(theirs) == layers(ours)
    assert layers("MyGLA2", "TRAINER.GLA.BASE", "TaskRes") == layers("GLA", "TRAINER.GLA.BASE", "TaskRes")
    assert layers("MyEnsemble") == layers("Ensemble", "TRAINER.ENSEMBLE.BASE", "CoOp")
    assert layers("MyBackdoor", "TRAINER.BACKDOOR.BASE", "MyFineTune") == layers("Backdoor")
    assert layers("GLA", "TRAINER.GLA.BASE", "MyFineTune") == layers("GLA", "TRAINER.GLA.BASE", "FineTune")
    with pytest.raises(ValueError, match=r"GLA over MyGLA over MyGLA has no end"):
        layers("GLA", "TRAINER.GLA.BASE", "MyGLA")


def test_folders_of_subclasses_are_named_as_those_of_their_classes(tmp_path):
    plugins.load([write(tmp_path / "one.py", SUBCLASSES), write(tmp_path / "more.py", MORE_SUBCLASSES)])

    def labels(trainer, *opts):
        cfg = config.load("digits", trainer=trainer, opts=opts)
        return trainer_label(cfg), backbone_label(cfg)

    assert labels("MyGLA") == ("MyGLA", "micro")
    assert labels("MyGLA2", "TRAINER.GLA.BASE", "CoOp") == ("MyGLA2-CoOp", "micro")
    assert labels("MyEnsemble") == ("MyEnsemble", "micro")
    assert labels("MyEnsemble", "TRAINER.MYENSEMBLE.BASE", "TaskRes") == ("MyEnsemble-TaskRes", "micro")
    assert labels("MyBackdoor") == ("MyBackdoor", "micro-a+micro-b+micro-c")
    assert config.has_members("MyBackdoor") and not config.has_members("MyGLA")


def test_a_plugins_keys_are_accepted_in_every_run_and_kept_in_its_own(mine):
    """So a sweep sets them for all, and runs of ours from before stay what they are."""
    opts = ("TRAINER.TINY.WIDTH", 3)
    before = config.load("digits", trainer="CoOp")
    plugins.load([mine])
    ours, theirs = (config.load("digits", trainer=name, opts=opts) for name in ("CoOp", "Tiny"))
    assert ours == before
    assert theirs.TRAINER.TINY.WIDTH == 3
    other = config.load("digits", trainer="Tiny", opts=("TRAINER.TINY.WIDTH", 4))
    assert fingerprint.differing_keys(theirs, other) == ["TRAINER.TINY.WIDTH"]
    another = config.load("digits", trainer="Tiny", opts=(*opts, "TRAINER.COOP.CSC", True))  # it may well read it
    assert fingerprint.differing_keys(theirs, another) == ["TRAINER.COOP.CSC"]
    assert config.load("digits", trainer="GLA", opts=("TRAINER.GLA.BASE", "Tiny")).TRAINER.TINY.WIDTH == 1


def test_a_plugin_that_has_moved_leaves_its_runs_what_they_are(mine, data_root, tmp_path):
    moved = tmp_path / "elsewhere" / "renamed.py"
    argv = ["-d", "digits", "-t", "Tiny", "--root", data_root, "--shots", "1", "--output-dir", str(tmp_path / "run")]
    with as_a_process(tmp_path):
        assert main(["train", "--plugin", mine, *argv, *QUICK]) == 0
    written = (tmp_path / "run" / "metrics.json").stat().st_mtime_ns
    write(moved, Path(mine).read_text())
    Path(mine).unlink()
    assert main(["train", "--plugin", str(moved), *argv, *QUICK]) == 0
    assert (tmp_path / "run" / "metrics.json").stat().st_mtime_ns == written
    assert main(["train", "--plugin", str(moved), *argv, *QUICK, "TRAINER.TINY.WIDTH", "2"]) == 2


def test_a_dataset_yaml_says_which_dataset_by_its_name_or_by_its_stem(mine, tmp_path):
    backbone = "MODEL: {BACKBONE: {NAME: micro}}\n"
    theirs = write(tmp_path / "digits.yaml", f"DATASET: {{NAME: MyPets}}\n{backbone}")
    assert config.load(theirs, trainer="CoOp").DATASET.NAME == "digits"  # no plugin, as CoOp's eurosat.yaml for ours
    plugins.load([mine])
    assert config.load(theirs, trainer="CoOp").DATASET.NAME == "MyPets"
    assert config.load(write(tmp_path / "x.yaml", f"DATASET: {{NAME: shapes}}\n{backbone}"), trainer="CoOp")
    with pytest.raises(ValueError, match="unknown dataset 'MyPetz'; did you mean MyPets"):
        config.load(write(tmp_path / "y.yaml", f"DATASET: {{NAME: MyPetz}}\n{backbone}"), trainer="CoOp")
    extra = write(tmp_path / "tiny.yaml", "MODEL: {BACKBONE: {NAME: micro}}\nTRAINER: {TINY: {WIDTH: 7}}\n")
    cfg = config.load("MyPets", trainer="Tiny", config_file=extra)
    assert (cfg.MODEL.BACKBONE.NAME, cfg.TRAINER.TINY.WIDTH, cfg.TRAINER.NAME) == ("micro", 7, "Tiny")
