"""The papers' architectures, and models on disk.

model = build("mnist_cnn")
save(model, "model.keras", provenance={"trained on": "mnist"})
model = load("model.keras")
"""

from reference_models.registry import build, names
from reference_models.storage import ModelFileError, load, provenance, save

__all__ = ["ModelFileError", "build", "load", "names", "provenance", "save"]
