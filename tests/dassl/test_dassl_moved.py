"""Names that newer releases of other packages removed; each test undoes the patches."""

import importlib
import sys
from importlib import metadata

import numpy as np
import pytest
import torch
from packaging.version import Version
from torch.optim import lr_scheduler

from unskew.dassl import moved


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    for name in moved._MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    names = set(vars(np))
    inits = {cls: vars(cls)["__init__"] for cls in _schedulers()}
    moved.restore()
    yield
    for name in set(vars(np)) - names:
        delattr(np, name)
    for cls, init in inits.items():
        cls.__init__ = init
    for name in moved._MODULES:
        sys.modules.pop(name, None)


def _schedulers():
    classes = [cls for cls in vars(lr_scheduler).values() if isinstance(cls, type)]
    return [cls for cls in classes if issubclass(cls, lr_scheduler.LRScheduler) and "__init__" in vars(cls)]


@pytest.fixture
def without_pkg_resources(monkeypatch):
    """An installation of setuptools 82 or later, whatever is installed here."""

    class Blocker:
        def find_spec(self, fullname, path=None, target=None):
            if fullname == "pkg_resources" and sys.meta_path[-1] is not None:
                return sys.meta_path[-1].find_spec(fullname)
            return None

    monkeypatch.setattr(sys, "meta_path", [Blocker(), *sys.meta_path])


def test_clip_finds_the_version_of_torch(without_pkg_resources):
    from pkg_resources import packaging  # the line of OpenAI's clip.py

    assert packaging.version.parse(torch.__version__) >= packaging.version.parse("1.7.1")


def test_pkg_resources(without_pkg_resources):
    import pkg_resources

    assert pkg_resources.parse_version("1.10") > Version("1.9")
    assert pkg_resources.get_distribution("numpy").version == np.__version__
    assert [found.name.lower() for found in pkg_resources.require("numpy>=1", "torch")] == ["numpy", "torch"]
    with pytest.raises(pkg_resources.DistributionNotFound):
        pkg_resources.get_distribution("no-such-package-here")
    assert pkg_resources.resource_filename("numpy", "__init__.py") == np.__file__
    assert pkg_resources.resource_string("numpy", "py.typed") == b""
    group, point = next((p.group, p) for d in metadata.distributions() for p in d.entry_points)
    assert point.name in {found.name for found in pkg_resources.iter_entry_points(group)}


def test_an_existing_module_is_used(tmp_path, monkeypatch):
    (tmp_path / "pkg_resources.py").write_text("HERE = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    import pkg_resources

    assert pkg_resources.HERE


def test_other_modules():
    functional = importlib.import_module("torchvision.transforms.functional_tensor")
    assert functional.rgb_to_grayscale(torch.ones(3, 2, 2)).shape == (1, 2, 2)
    assert importlib.import_module("torch._six").string_classes == (str, bytes)
    assert callable(importlib.import_module("torchvision.models.utils").load_state_dict_from_url)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("torch._seven")


def test_names_of_numpy():
    names = vars(np)
    assert np.array([1.7]).astype(names["int"]).tolist() == [1]
    assert (names["float"], names["object"], names["float_"]) == (float, object, np.float64)
    assert np.array([True], names["bool"]).dtype == bool


class OldWarmup(lr_scheduler.LRScheduler):
    """A schedule in the style of PyTorch 1: it passes verbose to its base class."""

    def __init__(self, optimizer, last_epoch=-1, verbose=False):
        super().__init__(optimizer, last_epoch, verbose)

    def get_lr(self):
        return [0.5 * rate for rate in self.base_lrs]


def test_schedules_ignore_verbose():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    assert OldWarmup(optimizer).get_last_lr() == [0.5]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    schedules = [
        lr_scheduler.CosineAnnealingLR(optimizer, 4, 0, -1, False),
        lr_scheduler.CosineAnnealingLR(optimizer, 4, verbose=True),
        lr_scheduler.StepLR(optimizer, 2, 0.1, -1, "deprecated"),
        lr_scheduler.ReduceLROnPlateau(optimizer, verbose=True),
    ]
    assert [getattr(schedule, "T_max", None) for schedule in schedules] == [4, 4, None, None]
    with pytest.raises(TypeError):
        lr_scheduler.StepLR(optimizer, 2, 0.1, -1, False, 7)
    moved.restore()  # twice is once
    with pytest.raises(TypeError):
        lr_scheduler.StepLR(optimizer, 2, 0.1, -1, False, 7)
