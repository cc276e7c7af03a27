"""Estimate and remove the class bias that a foundation model shows on your data.

The public names are listed in ``__init__.pyi`` and loaded at their first use, so that ``import unskew`` is fast.
"""

# ``trainers/``, ``datasets/`` and ``configs/`` are beside this package in a checkout and inside it once installed. With
# the root of the checkout in ``__path__``, ``unskew.trainers.gla`` resolves in both, and nothing imports a top-level
# ``datasets``.

from pathlib import Path

import lazy_loader

__version__ = "0.2.0"

_root = Path(__file__).resolve().parent.parent
if (_root / "setup.py").is_file() and (_root / "trainers").is_dir():
    __path__.append(str(_root))

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
