"""unskew removes the label bias that a foundation model brings into recognition.

``trainers/``, ``datasets/`` and ``configs/`` stand beside this package in a source checkout and
inside it once installed. Appending the repository root to ``__path__`` lets
``unskew.trainers.gla`` resolve in both, without ever importing a top-level ``datasets``.
"""

from pathlib import Path

__version__ = "0.1.0"

_root = Path(__file__).resolve().parent.parent
if (_root / "setup.py").is_file() and (_root / "trainers").is_dir():
    __path__.append(str(_root))
