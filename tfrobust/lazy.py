"""The public names of `tfrobust`, imported on first use.

TensorFlow takes seconds to import and writes to stderr: the command line does without it where it
can, and silences it first where it cannot. The names and their modules are in `__init__.pyi`.
"""

from pathlib import Path

import lazy_loader

__all__ = ["__all__", "__dir__", "__getattr__"]

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(
    "tfrobust", str(Path(__file__).with_name("__init__.pyi"))
)
