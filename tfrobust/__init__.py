"""Adversarial robustness and interpretable gradients in TensorFlow 2 / Keras 3.

The public names are listed in `__init__.pyi` and imported on first use.
"""

from tfrobust.lazy import __all__ as __all__
from tfrobust.lazy import __dir__ as __dir__
from tfrobust.lazy import __getattr__ as __getattr__
