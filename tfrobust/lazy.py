"""What `tfrobust` offers at the top, imported where it is first used.

TensorFlow takes seconds to import and writes to stderr: the command line answers without it, and
silences it first where it is needed. The names and where they come from stand in `__init__.pyi`.
"""

from pathlib import Path

import lazy_loader

__all__ = ["__all__", "__dir__", "__getattr__"]

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(
    "tfrobust", str(Path(__file__).with_name("__init__.pyi"))
)
