"""Every module of Dassl 0.6.3 with every name that it defines or imports.

The table was made by parsing the modules of the release. It has one entry per module: names that the module defines,
and ``name=module:attribute`` for names that it imports.
"""

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from unskew.dassl import finder
from unskew.dassl.imported_names import IMPORTED

pytestmark = pytest.mark.usefixtures("engine_as_dassl")

NAMES = json.loads((Path(__file__).parent / "dassl_063_names.json").read_text())

# Packages that Dassl needs and this package does not.
OPTIONAL = ("gdown", "wilds", "pandas")


def origin(text: str):
    """Return the object of "module:attribute" or "module"."""
    module, _, attribute = text.partition(":")
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found


def can_import(text: str) -> bool:
    package = text.split(".")[0].split(":")[0]
    return package not in OPTIONAL or importlib.util.find_spec(package) is not None


def test_the_table_is_of_the_whole_release():
    assert len(NAMES) == 115
    assert {"dassl", "dassl.engine.trainer", "dassl.modeling.ops.mixstyle"} <= NAMES.keys()
    assert set(finder.MODULES) <= NAMES.keys()


@pytest.mark.parametrize("module", NAMES)
def test_every_name_of_a_module(module):
    found = importlib.import_module(module)
    missing, others = [], []
    for word in NAMES[module].split():
        name, _, source = word.partition("=")
        if source and not can_import(source):
            continue
        if not hasattr(found, name):
            missing.append(name)
        elif source and getattr(found, name) is not origin(source):
            others.append(name)
    assert not missing
    assert not others, "these are other objects than in the modules from which Dassl imports them"


def test_names_of_scripts():
    found = {}
    exec("from dassl.engine.trainer import MetricMeter, AverageMeter, SummaryWriter, DataManager, np, osp, nn", found)
    exec("from dassl.optim.radam import RAdam", found)
    exec("from dassl.data.transforms.transforms import F, Random2DTranslation, _build_transform_train", found)
    assert found["F"].__name__ == "torchvision.transforms.functional"
    assert found["MetricMeter"] is importlib.import_module("dassl.utils").MetricMeter


@pytest.mark.parametrize("name", ["nothing", "_nothing", "__nothing__", "CLIPTrainer", "logger", "loop"])
def test_names_of_our_modules_are_no_names_of_dassl(name):
    trainer = importlib.import_module("dassl.engine.trainer")
    assert not hasattr(trainer, name)
    with pytest.raises(AttributeError, match=name):
        getattr(trainer, name)


def test_a_package_that_is_not_installed_is_a_missing_name(monkeypatch):
    monkeypatch.setitem(IMPORTED, "gdown", "a_package_that_nobody_has")
    assert not hasattr(importlib.import_module("dassl.data.datasets.base_dataset"), "gdown")


CLASHES = """
from unskew.dassl import finder
finder.install(force=True)
import dassl.modeling.ops.mixup, dassl.modeling.ops.cross_entropy, dassl.modeling.backbone.alexnet
import dassl.modeling.head.mlp
from dassl.data import transforms
from dassl.engine import trainer
from dassl.modeling.backbone import alexnet, efficientnet
from dassl.modeling.head import mlp
from dassl.modeling.ops import cross_entropy, mixup, reverse_grad
for function in (mixup, cross_entropy, alexnet, mlp):
    assert not hasattr(function, "__path__") and type(function).__name__ == "function", function
for module in (transforms, trainer, efficientnet, reverse_grad):
    assert type(module).__name__ == "module" and module.__name__.startswith("dassl."), module
"""


def test_functions_with_the_names_of_their_modules():
    """The function counts where Dassl's package imports it, and the module elsewhere."""
    done = subprocess.run([sys.executable, "-c", CLASHES], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
