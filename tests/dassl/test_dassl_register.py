"""Our trainers in an installed Dassl (see docs/DASSL.md); without it, only the first test runs."""

import importlib
import importlib.util
import logging
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unskew import config
from unskew.data.catalogue import dataset_class
from unskew.engine.run_dir import RunDir
from unskew.runs import tables

ROOT = Path(__file__).resolve().parents[2]
FAST = ("INPUT.VIEWS", 2, "DATALOADER.NUM_WORKERS", 0, "MODEL.BACKBONE.NAME", "micro")
TERMINAL = re.compile(r"^\* accuracy: ([\d.]+)%", re.MULTILINE)  # what CoOp's parse_test_res.py looks for

HIDDEN = """
import sys

class Hide:
    def find_spec(name, *rest):
        if name == "dassl":
            raise ModuleNotFoundError(name=name)

sys.meta_path.insert(0, Hide)
import unskew.dassl.register
"""

# A training script and a dataset in the style of CoOp's, with two lines of ours.
SCRIPT = '''
import argparse
from yacs.config import CfgNode
import unskew.dassl.register as unskew_register
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer
from dassl.utils import set_random_seed, setup_logger
from unskew import config
from unskew.data.dataset import build_dataset


@DATASET_REGISTRY.register()
class Digits(DatasetBase):
    def __init__(self, cfg):
        ours = config.load("digits", trainer="CoOp", opts=["DATASET.ROOT", cfg.DATASET.ROOT])
        dataset, splits = build_dataset(ours), {}
        for split in ("train_x", "val", "test"):
            splits[split] = [Datum(i.impath, i.label, 0, i.classname) for i in getattr(dataset, split)]
        splits["train_x"] = self.generate_fewshot_dataset(splits["train_x"], num_shots=cfg.DATASET.NUM_SHOTS)
        splits["val"] = self.generate_fewshot_dataset(splits["val"], num_shots=4)
        super().__init__(**splits)


@TRAINER_REGISTRY.register()
class CoOp(TrainerX):
    """A trainer of the script."""


def extend_cfg(cfg):
    cfg.TRAINER.COOP = CfgNode({"N_CTX": 7, "CTX_INIT": False, "PREC": "fp16"})
    unskew_register.extend_cfg(cfg)


parser = argparse.ArgumentParser()
for name in ("root", "output-dir", "trainer", "backbone", "model-dir"):
    parser.add_argument(f"--{name}", default="")
parser.add_argument("--seed", type=int, default=-1)
parser.add_argument("--eval-only", action="store_true")
parser.add_argument("opts", nargs=argparse.REMAINDER)
args = parser.parse_args()
cfg = get_cfg_default()
extend_cfg(cfg)
cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.OUTPUT_DIR, cfg.SEED = "Digits", args.root, args.output_dir, args.seed
cfg.TRAINER.NAME, cfg.MODEL.BACKBONE.NAME = args.trainer, args.backbone
cfg.merge_from_list(args.opts)
cfg.freeze()
set_random_seed(cfg.SEED)
setup_logger(cfg.OUTPUT_DIR)
trainer = build_trainer(cfg)
if args.eval_only:
    trainer.load_model(args.model_dir, epoch=None)
    trainer.test()
else:
    trainer.train()
'''


@pytest.fixture(scope="module")
def register():
    """Return the module if Dassl is installed."""
    spec = importlib.util.find_spec("dassl")
    if spec is None or not str(spec.origin).endswith(".py"):
        pytest.skip("Dassl is not installed")
    module = importlib.import_module("unskew.dassl.register")
    logging.disable(logging.NOTSET)  # importing Dassl silences every logger of the process
    return module


@pytest.fixture
def registry(register, monkeypatch):
    """Replace Dassl's registry of trainers by an empty one."""
    registry = type(register.DASSL_TRAINERS)("TRAINER")
    monkeypatch.setattr(register, "DASSL_TRAINERS", registry)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    return registry


def dassl_cfg(register, *opts, theirs=None, dataset="EuroSAT"):
    """Return Dassl's config as a script builds it; ``theirs`` is the node TRAINER.COOP of the script."""
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    if theirs is not None:
        cfg.TRAINER.COOP = type(cfg)(theirs)
    register.extend_cfg(cfg)
    cfg.DATASET.NAME = dataset
    cfg.merge_from_list([*FAST, *opts])
    cfg.freeze()
    return cfg


def source(folder, **splits):
    """Return a dataset of Dassl from image names: the first of each split is a forest, the second a river."""
    from dassl.data.datasets import DatasetBase, Datum

    def item(image, label):
        (folder / image).touch()  # Dassl asks for it
        return Datum(str(folder / image), label, 0, ("Forest", "River")[label])

    return DatasetBase(
        **{split: [item(i, label) for label, i in enumerate(images)] for split, images in splits.items()}
    )


def test_without_dassl_the_import_says_what_to_do():
    done = subprocess.run([sys.executable, "-c", HIDDEN], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "docs/DASSL.md" in done.stderr.strip().splitlines()[-1]


# --- names and keys -----------------------------------------------------------------------------------


def test_all_our_trainers_are_registered_once(register, registry, capsys):
    dassl_cfg(register)
    assert sorted(registry.registered_names()) == config.names("trainers")
    dassl_cfg(register)
    assert capsys.readouterr().out == ""


def test_a_trainer_of_the_script_keeps_its_name(register, registry, capsys):
    class CoOp:
        pass

    registry.register(CoOp)
    dassl_cfg(register)
    assert registry.get("CoOp") is CoOp and "GLA" in registry.registered_names()
    assert "CoOp" in capsys.readouterr().out


def test_keys_are_added_and_existing_keys_keep_their_values(register, registry):
    cfg = dassl_cfg(register, theirs={"N_CTX": 7, "PREC": "fp16"})
    assert (cfg.TRAINER.COOP.N_CTX, cfg.TRAINER.COOP.PREC, cfg.TRAINER.COOP.CSC) == (7, "fp16", False)
    assert cfg.TRAINER.GLA.BASE == "ResidualPrompt" and cfg.DATASET.SUBSAMPLE_CLASSES == "all"
    assert cfg.OPTIM.MAX_EPOCH == 10 and cfg.SEED == -1  # Dassl's own


# --- the config ---------------------------------------------------------------------------------------


def test_settings_of_the_user_override_ours(register, registry):
    cfg = register.trainer_config("ProGrad", dassl_cfg(register, "DATASET.NUM_SHOTS", 8, "OPTIM.LR", 0.5))
    alone = config.load("eurosat", "micro", "ProGrad", ("DATASET.NUM_SHOTS", 8))
    assert cfg.OPTIM.LR == 0.5 and cfg.MODEL.BACKBONE.NAME == "micro" and cfg.INPUT.VIEWS == 2
    assert cfg.OPTIM.MAX_EPOCH == alone.OPTIM.MAX_EPOCH != 10
    assert cfg.TRAINER.PROGRAD.LAMBDA == alone.TRAINER.PROGRAD.LAMBDA == 0.8  # of 8 shots on EuroSAT
    assert cfg.DATASET.NAME == "EuroSAT" and cfg.TRAINER.NAME == "ProGrad"


def test_backdoor_takes_its_backbones_from_members(register, registry):
    with pytest.raises(ValueError, match=r"TRAINER\.BACKDOOR\.MEMBERS"):
        register.trainer_config("Backdoor", dassl_cfg(register))  # its backbone is micro
    members = ("TRAINER.BACKDOOR.MEMBERS", ["micro-a", "micro-b"])
    assert register.trainer_config("Backdoor", dassl_cfg(register, *members)).TRAINER.BACKDOOR.MEMBERS == members[1]


def test_a_default_value_on_the_command_line_counts_as_set(register, registry, monkeypatch, tmp_path):
    cfg = dassl_cfg(register)
    ours = register.trainer_config("CoOp", cfg)
    assert ours.OPTIM.MAX_EPOCH == 200 and ours.DATALOADER.TEST.BATCH_SIZE == 100
    (tmp_path / "mine.yaml").write_text("DATALOADER: {TEST: {BATCH_SIZE: 32}}\n")
    monkeypatch.setattr(sys, "argv", ["train.py", f"--config-file={tmp_path / 'mine.yaml'}", "OPTIM.MAX_EPOCH", "10"])
    ours = register.trainer_config("CoOp", cfg)
    assert ours.OPTIM.MAX_EPOCH == 10 and ours.DATALOADER.TEST.BATCH_SIZE == 32  # Dassl's own defaults


def test_a_key_of_another_type_is_not_copied(register, registry):
    cfg = dassl_cfg(register, "TRAINER.COOP.CTX_INIT", True, theirs={"CTX_INIT": False, "N_CTX": 16})
    assert register.trainer_config("CoOp", cfg).TRAINER.COOP.CTX_INIT == ""


def test_a_dataset_of_the_script_needs_no_yaml(register, registry):
    cfg = register.trainer_config("CoOp", dassl_cfg(register, dataset="Office31"))
    assert cfg.DATASET.NAME == "Office31" and cfg.OPTIM.MAX_EPOCH == 200


def test_a_value_of_another_type_is_refused(register, registry):
    cfg = dassl_cfg(register).clone()
    cfg.defrost()
    cfg.OPTIM["LR"] = [1]
    with pytest.raises(ValueError, match=r"OPTIM\.LR"):
        register.trainer_config("CoOp", cfg)


# --- the dataset --------------------------------------------------------------------------------------


def test_a_dataset_that_we_have_uses_our_prompts(register, tmp_path):
    splits = source(tmp_path, train_x=["a", "b"], val=["c", "d"], test=["e", "f"])
    eurosat = register.BorrowedDataset(splits, dataset_class("eurosat"))
    assert eurosat.template == dataset_class("eurosat").template
    assert eurosat.lab2cname == splits.lab2cname and eurosat.classnames == ["Forest", "River"]
    river = eurosat.test[1]
    assert (river.impath, river.label, river.classname) == (str(tmp_path / "f"), 1, "River")
    assert register.BorrowedDataset(splits).template == "a photo of a {}."
    assert len(register.BorrowedDataset(splits, dataset_class("imagenet")).templates) == 80


# --- a script -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(register, tmp_path_factory, data_root):
    """Run the script, kill it when the file ``until`` appears, and return its output."""
    folder = tmp_path_factory.mktemp("script")
    (folder / "train.py").write_text(SCRIPT)
    (folder / "trainers").mkdir()  # of such names are those codebases' own

    def run(output, *flags, opts=(), until=None):
        where = ("--root", data_root, "--output-dir", str(output), "--seed", "1", "--backbone", "micro")
        words = [sys.executable, "train.py", *where, *flags, *map(str, (*FAST[:4], "DATASET.NUM_SHOTS", 4, *opts))]
        process = subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if until is not None:
            while process.poll() is None and not (output / until).exists():
                time.sleep(0.01)
            process.kill()
        printed = process.communicate()[0]
        assert until or process.returncode == 0, printed
        return printed

    return run


@pytest.mark.slow
def test_gla_trains_resumes_and_is_tested_in_a_dassl_script(run, tmp_path):
    epochs = ("OPTIM.MAX_EPOCH", 20, "TRAIN.CHECKPOINT_FREQ", 2, "TRAINER.GLA.COMBINE", "sum")
    whole = run(tmp_path / "whole", "--trainer", "GLA", opts=epochs)
    assert "CoOp" in whole.splitlines()[0]
    log = (tmp_path / "whole" / "log.txt").read_text()
    assert log.index("Finish training") < log.index("=> result") < log.index("* accuracy")
    accuracy = TERMINAL.findall(log)
    assert len(accuracy) == 1 and float(accuracy[0]) > 30  # 10 classes

    broken = tmp_path / "broken"
    run(broken, "--trainer", "GLA", opts=epochs, until="prompt_learner/model.pth.tar-6")
    resumed = run(broken, "--trainer", "GLA", opts=epochs)
    assert f"Found checkpoint at {broken}" in resumed and TERMINAL.findall(resumed) == accuracy

    rows = {Path(row["folder"]).name: row for row in tables.collect(tmp_path)}
    for row in (rows["whole"], rows["broken"]):
        assert f"{row['accuracy']:.1f}" == accuracy[0] and (row["trainer"], row["shots"]) == ("GLA", 4)
        assert {"zs_accuracy", "gla_accuracy", "trained_parameters", "labelled_images"} <= row.keys()
    assert RunDir(broken).predictions.is_file() and RunDir(broken).prior.is_file()

    tested = run(tmp_path / "test", "--trainer", "GLA", "--eval-only", "--model-dir", str(broken), opts=epochs)
    assert tables.evaluations(tmp_path)[0]["evaluated_from"] == str(broken)
    assert TERMINAL.findall(tested) == accuracy and "epoch [" not in tested


@pytest.mark.slow
def test_members_share_the_sample_of_dassl(run, tmp_path):
    opts = ("OPTIM.MAX_EPOCH", 1, "TRAINER.BACKDOOR.MEMBERS", "['micro-a', 'micro-b']", "TRAINER.BACKDOOR.DEBIAS", True)
    printed = run(tmp_path, "--trainer", "Backdoor", opts=opts)
    assert printed.count("Creating a 4-shot dataset") == 2  # train and val, once
    assert all((tmp_path / "members" / name / "done").is_file() for name in ("micro-a", "micro-b"))
    assert len(TERMINAL.findall(printed)) == 1
    (row,) = tables.collect(tmp_path)
    assert row["backbone"] == "micro-a+micro-b"
