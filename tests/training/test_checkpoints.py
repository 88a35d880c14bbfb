"""Files of named sets of variables: several models, several optimizers, arrays."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrobust.training import checkpoints

NAMES = ("encoder", "decoder", "discriminator")


def three(seed):
    """Three networks, each with an Adam that has taken a step, by the names of their sets."""
    keras.utils.set_random_seed(seed)
    sets = {}
    for width, name in enumerate(NAMES, 2):
        model = keras.Sequential(
            [keras.Input((3,)), keras.layers.Dense(width), keras.layers.BatchNormalization()]
        )
        optimizer = keras.optimizers.Adam(0.1 * width)
        optimizer.build(model.trainable_variables)
        gradients = [tf.ones(variable.shape) for variable in model.trainable_variables]
        optimizer.apply(gradients, model.trainable_variables)
        sets |= {name: model.variables, f"{name}_optimizer": optimizer.variables}
    return sets


def values_of(sets):
    return [keras.ops.convert_to_numpy(v).copy() for name in sets for v in sets[name]]


def test_three_networks_with_an_optimizer_each(tmp_path):
    saved, other = three(0), three(1)
    extra = np.arange(6.0).reshape(2, 3)
    path = checkpoints.save(tmp_path, 17, {**saved, "extra": [extra]}, {"epoch": 3, "rate": 0.1})
    assert path == checkpoints.newest(tmp_path)
    assert checkpoints.step_of(path) == 17
    state, values = checkpoints.read(path)
    assert state == {"epoch": 3, "rate": 0.1}
    np.testing.assert_array_equal(values.pop("extra.0000.array"), extra)
    expected = values_of(saved)
    before = values_of(other)
    assert any((a != b).any() for a, b in zip(before, expected, strict=True))
    checkpoints.assign(values, other)
    for one, restored in zip(expected, values_of(other), strict=True):
        np.testing.assert_array_equal(one, restored)


def test_nothing_is_assigned_where_a_set_does_not_fit(tmp_path):
    saved, other = three(0), three(1)
    _, values = checkpoints.read(checkpoints.save(tmp_path, 1, saved, {}))
    before = values_of(other)
    swapped = {**other, "encoder": other["decoder"], "decoder": other["encoder"]}
    fewer = {name: other[name] for name in list(other)[1:]}
    for sets in (swapped, fewer, {"model": other["encoder"]}):
        with pytest.raises(checkpoints.DamagedCheckpointError, match="is of another model"):
            checkpoints.assign(values, sets)
    for one, kept in zip(before, values_of(other), strict=True):
        np.testing.assert_array_equal(one, kept)


def test_the_two_newest_steps_stay(tmp_path):
    sets = {"model": three(0)["encoder"]}
    (tmp_path / "step-1.npz").write_text("not ours")
    for step in (9, 10, 99, 100, 1_000_000):
        checkpoints.save(tmp_path, step, sets, {})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-000000100.npz", "step-001000000.npz", "step-1.npz"]
    assert checkpoints.newest(tmp_path / "none") is None


def test_the_same_network_built_later_has_the_same_keys(tmp_path):
    """Keras numbers layers through a process; keys do not depend on what was built before."""
    keras.utils.clear_session()
    keys = checkpoints.read(checkpoints.save(tmp_path, 1, three(0), {}))[1].keys()
    assert checkpoints.read(checkpoints.save(tmp_path, 2, three(0), {}))[1].keys() == keys
    assert any("kernel" in key for key in keys)
