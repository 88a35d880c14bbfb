"""The papers' architectures, Keras Applications checkpoints, and models on disk.

model = build("mnist_cnn")
save(model, "model.keras", provenance={"trained on": "mnist"})
model = load("model.keras")

model = build("resnet50", weights="imagenet")
x = preprocessing("resnet50")(images)  # RGB, 0..255
"""

from reference_models.preprocessing import Preprocessing, preprocessing
from reference_models.registry import build, names
from reference_models.storage import ModelFileError, load, provenance, save
from reference_models.weights import load_weights, save_weights

__all__ = [
    "ModelFileError",
    "Preprocessing",
    "build",
    "load",
    "load_weights",
    "names",
    "preprocessing",
    "provenance",
    "save",
    "save_weights",
]
