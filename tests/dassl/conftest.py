"""This engine under the name of Dassl in the tests of a module."""

import sys

import pytest

from unskew.dassl import finder


@pytest.fixture(scope="module")
def engine_as_dassl():
    """Let ``import dassl`` import this engine in the tests of a module."""
    finders = list(sys.meta_path)
    finder.install(force=True)
    yield
    sys.meta_path[:] = finders
    for name in [name for name in sys.modules if name.split(".")[0] == "dassl"]:
        del sys.modules[name]
