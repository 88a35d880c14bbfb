"""Any Keras model as logits with compiled derivatives."""

from tfrobust.classifier.checks import NotLogitsError
from tfrobust.classifier.classifier import Classifier, values_of
from tfrobust.classifier.derivatives import (
    CHUNK,
    class_gradients,
    classes_of,
    gradients_at,
    jacobian,
    jvp,
    predict_logits,
    push_forward,
    softmax,
    vjp,
)
from tfrobust.classifier.inputs import as_images, as_labels, in_batches, model_input_shape
from tfrobust.classifier.keras_internals import (
    all_layers,
    exact_batch_statistics,
    graph_inputs,
    local_variable,
    producer,
    replaced_method,
    takes_training,
    with_attributes,
)
from tfrobust.classifier.logits import WithoutActivation, is_graph, logits_model
from tfrobust.classifier.statistics import unchanged_statistics
from tfrobust.classifier.traced import layers_behind

__all__ = [
    "CHUNK",
    "Classifier",
    "NotLogitsError",
    "WithoutActivation",
    "all_layers",
    "as_images",
    "as_labels",
    "class_gradients",
    "classes_of",
    "exact_batch_statistics",
    "gradients_at",
    "graph_inputs",
    "in_batches",
    "is_graph",
    "jacobian",
    "jvp",
    "layers_behind",
    "local_variable",
    "logits_model",
    "model_input_shape",
    "predict_logits",
    "producer",
    "push_forward",
    "replaced_method",
    "softmax",
    "takes_training",
    "unchanged_statistics",
    "values_of",
    "vjp",
    "with_attributes",
]
