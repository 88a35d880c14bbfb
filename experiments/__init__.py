"""The papers' experiments, one folder each; TensorFlow's start-up messages are left out."""

from tfrobust.commands import import_tensorflow

import_tensorflow()
