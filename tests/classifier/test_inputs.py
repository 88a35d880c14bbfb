"""The boundary of the public functions: what they refuse, and how they cut batches."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tfrobust.classifier.inputs import as_images, as_labels, in_batches, model_input_shape

layers = keras.layers


@pytest.fixture(scope="module")
def model():
    return keras.Sequential([layers.Input((4, 5, 1)), layers.Flatten(), layers.Dense(3)])


class Undeclared(keras.Model):
    def call(self, inputs):
        return inputs


def test_declared_input_shapes(model):
    inputs = layers.Input((None, None, 3))
    functional = keras.Model([inputs], [layers.GlobalAveragePooling2D()(inputs)])
    assert model_input_shape(model) == (4, 5, 1)
    assert model_input_shape(functional) == (None, None, 3)


def test_models_that_declare_no_input_shape():
    a, b = layers.Input((2,)), layers.Input((2,))
    assert model_input_shape(Undeclared()) is None
    assert model_input_shape(keras.Sequential([layers.Dense(2)])) is None
    assert model_input_shape(keras.Model([a, b], layers.Add()([a, b]))) is None
    assert model_input_shape(lambda x: x) is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8, np.int64, bool])
def test_numbers_become_float32(model, rng, dtype):
    x = rng.integers(0, 2, size=(2, 4, 5, 1)).astype(dtype)
    found = as_images(model, x)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, x.astype(np.float32))


def test_lists_and_tensors_are_taken(model, rng):
    x = rng.random((2, 4, 5, 1)).astype(np.float32)
    np.testing.assert_array_equal(as_images(model, x.tolist()), x)
    np.testing.assert_array_equal(as_images(model, tf.constant(x)), x)


def test_float32_is_not_copied(model):
    x = np.zeros((2, 4, 5, 1), np.float32)
    assert as_images(model, x) is x


def test_any_size_fits_an_open_dimension():
    model = keras.Sequential([layers.Input((None, 5, 1)), layers.GlobalAveragePooling2D()])
    for height in (1, 7):
        assert as_images(model, np.zeros((2, height, 5, 1))).shape == (2, height, 5, 1)
    message = "x has shape (2, 7, 6, 1), but the model takes (batch, any, 5, 1)."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        as_images(model, np.zeros((2, 7, 6, 1)))


@pytest.mark.parametrize(
    "shape",
    [(2, 4, 4, 1), (2, 5, 4, 1), (2, 4, 5, 3), (2, 4, 5), (2, 20), (2,), (), (1, 2, 4, 5, 1)],
)
def test_a_wrong_shape_is_refused(model, shape):
    message = f"x has shape {shape}, but the model takes (batch, 4, 5, 1)."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        as_images(model, np.zeros(shape))


def test_one_image_gets_a_hint(model):
    message = (
        "x has shape (4, 5, 1), but the model takes (batch, 4, 5, 1). "
        "One image is a batch of one: x[None]."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        as_images(model, np.zeros((4, 5, 1)))


def test_a_model_without_declared_shape_still_needs_a_batch():
    assert as_images(Undeclared(), np.zeros((2, 3))).shape == (2, 3)
    message = "x must be a batch, (batch, ...), got shape (3,)"
    with pytest.raises(ValueError, match=re.escape(message)):
        as_images(Undeclared(), np.zeros(3))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(model, bad):
    x = np.zeros((5, 4, 5, 1))
    x[2, 1, 1, 0] = x[4, 0, 0, 0] = x[4, 3, 3, 0] = bad
    message = "x holds NaN or infinite values in 2 of 5 examples, first in example 2"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        as_images(model, x)


@pytest.mark.filterwarnings("ignore:overflow")
def test_values_beyond_float32_are_refused(model):
    with pytest.raises(ValueError, match="x holds NaN or infinite values in 2 of 2 examples"):
        as_images(model, np.full((2, 4, 5, 1), 1e300))


def test_an_empty_batch_is_refused(model):
    with pytest.raises(ValueError, match=r"^x is an empty batch: give at least one example$"):
        as_images(model, np.zeros((0, 4, 5, 1)))
    with pytest.raises(ValueError, match=r"^x is an empty batch: give at least one example$"):
        as_images(Undeclared(), np.zeros((0, 3)))


@pytest.mark.parametrize(
    ("dtype", "name"), [(object, "object"), (np.complex64, "complex64"), ("<U1", "<U1")]
)
def test_what_is_no_number_is_refused(model, dtype, name):
    with pytest.raises(TypeError, match=f"^x must hold numbers, got an array of {name}$"):
        as_images(model, np.zeros((2, 4, 5, 1)).astype(dtype))


def test_the_argument_is_named(model):
    with pytest.raises(ValueError, match=r"^baseline is an empty batch"):
        as_images(model, np.zeros((0, 4, 5, 1)), name="baseline")
    with pytest.raises(ValueError, match=r"^target must have shape"):
        as_labels([1], 2, 3, name="target")


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint64, np.float32, np.float64])
def test_whole_numbers_are_labels(dtype):
    found = as_labels(np.array([0, 2, 1], dtype), 3, 3)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, [0, 2, 1])
    np.testing.assert_array_equal(as_labels(tf.constant([0, 2, 1]), 3, 3), [0, 2, 1])
    np.testing.assert_array_equal(as_labels([0, 2, 1], 3, 3), [0, 2, 1])


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 2, 0], [], 1])
def test_as_many_labels_as_examples(labels):
    message = f"labels must have shape (3,), got {np.shape(labels)}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        as_labels(labels, 3, 3)


def test_one_hot_labels_get_a_hint():
    message = "labels must have shape (3,), got (3, 3). Give class indices, not one-hot rows."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        as_labels(np.eye(3), 3, 3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [0.5, np.nan, np.inf, "1", None])
def test_labels_that_are_not_whole_numbers(bad):
    labels = np.array([0, bad])
    message = f"labels must be whole numbers, got {labels.dtype}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        as_labels(labels, 2, 3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("bad", "shown"), [(3, "3"), (-1, "-1"), (2**40, str(2**40))])
def test_labels_out_of_range(bad, shown):
    message = (
        f"labels must lie in 0..2 for 3 classes, but 2 do not: the first is {shown}, at position 1"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        as_labels([0, bad, 2, bad], 4, 3)


@pytest.mark.filterwarnings("error")
def test_labels_too_large_for_an_integer():
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2 for 3 classes"):
        as_labels([0, 1e30], 2, 3)


@given(st.integers(1, 30), st.integers(1, 40))
def test_in_batches_joins_every_row_once_whatever_the_batch_size(count, batch_size):
    a = np.arange(count * 2, dtype=np.float32).reshape(count, 2)
    b = np.arange(count, dtype=np.int32)
    sizes = []

    def function(rows, index):
        sizes.append(len(rows))
        return {"sum": rows + tf.cast(index, tf.float32)[:, None], "pair": (index, index * 2)}

    found = in_batches(function, a, b, batch_size=batch_size)
    assert set(found) == {"sum", "pair"}
    assert isinstance(found["sum"], np.ndarray)
    np.testing.assert_array_equal(found["sum"], a + b[:, None])
    np.testing.assert_array_equal(found["pair"][0], b)
    np.testing.assert_array_equal(found["pair"][1], b * 2)
    assert sum(sizes) == count
    assert max(sizes) <= batch_size
    assert len(sizes) == -(-count // batch_size)


def test_in_batches_gives_tensors_to_the_function():
    def function(rows):
        assert isinstance(rows, tf.Tensor)
        assert rows.dtype == tf.float32
        return rows

    x = np.ones((3, 2), np.float32)
    found = in_batches(function, x, batch_size=2, description="words")
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, x)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_needs_a_row(batch_size):
    with pytest.raises(ValueError, match=f"^batch_size must be at least 1, got {batch_size}$"):
        in_batches(lambda rows: rows, np.ones((3, 2)), batch_size=batch_size)
