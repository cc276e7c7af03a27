"""Export of finished runs to files that need no part of this package."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"write": ["Exported", "export_run"]})
