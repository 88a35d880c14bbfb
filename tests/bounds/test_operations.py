"""Every operation's claims, tried with random changes inside the ball they are made for."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.nets import randomise

from tfrobust import norms
from tfrobust.bounds.certified.rules import operation_of
from tfrobust.bounds.graph import walk
from tfrobust.bounds.operations.activations import activation_of
from tfrobust.bounds.operations.base import Lipschitz, heaviest_load
from tfrobust.bounds.operations.response_normalization import ResponseNormalisation
from tfrobust.layers import LocalResponseNormalization, LpPooling2D

layers = keras.layers
IMAGE, VECTOR = (6, 6, 4), (9,)
BATCH, MARGINS, DRAWS = 6, 3, 20

CASES = {
    "conv": (layers.Conv2D(3, 3), IMAGE),
    "conv_stride": (layers.Conv2D(4, 3, strides=2, padding="same", groups=2), IMAGE),
    "depthwise": (layers.DepthwiseConv2D(3, depth_multiplier=2), IMAGE),
    "separable": (layers.SeparableConv2D(3, 3, strides=2, depth_multiplier=2), IMAGE),
    "separable_1d": (layers.SeparableConv1D(3, 2, padding="same"), (9, 2)),
    "conv1d": (layers.Conv1D(3, 2, padding="causal"), (9, 2)),
    "dense": (layers.Dense(5), VECTOR),
    "dense_on_images": (layers.Dense(5), IMAGE),
    "batch_normalisation": (layers.BatchNormalization(), IMAGE),
    "rescaling": (layers.Rescaling(2.0, offset=1.0), VECTOR),
    "average": (layers.AveragePooling2D(3, strides=2, padding="same"), IMAGE),
    "global_average": (layers.GlobalAveragePooling2D(), IMAGE),
    "max": (layers.MaxPooling2D(2), IMAGE),
    "max_overlapping": (layers.MaxPooling2D(3, strides=2, padding="same"), IMAGE),
    "max_1d": (layers.MaxPooling1D(3, strides=1), (9, 2)),
    "global_max": (layers.GlobalMaxPooling2D(), IMAGE),
    "lp": (LpPooling2D(2, p=1.5), IMAGE),
    "lp_overlapping": (LpPooling2D(3, strides=2, padding="same", p=3.0), IMAGE),
    "lrn": (LocalResponseNormalization(), IMAGE),
    "lrn_strong": (LocalResponseNormalization(depth_radius=1, bias=1.0, alpha=0.5), IMAGE),
    "padding": (layers.ZeroPadding2D(1), IMAGE),
    "flatten": (layers.Flatten(), IMAGE),
    "relu": (layers.ReLU(), VECTOR),
    "relu_leaky": (layers.ReLU(negative_slope=0.3), VECTOR),
    "relu_clipped": (layers.ReLU(max_value=0.7), VECTOR),
    "leaky": (layers.LeakyReLU(0.1), VECTOR),
    "elu": (layers.ELU(), VECTOR),
    "elu_steep": (layers.ELU(alpha=1.7), VECTOR),
    **{
        name: (layers.Activation(name), VECTOR)
        for name in (
            *("relu", "leaky_relu", "relu6", "elu", "selu", "softplus", "sigmoid", "tanh"),
            *("softsign", "silu", "gelu", "hard_sigmoid", "hard_silu", "linear"),
        )
    },
}


def operation(layer, shape, seed=0):
    """The operation of one layer, as the last step but one before a classifier's logits."""
    inputs = keras.Input(shape)
    output = layer(inputs)
    randomise(layer, seed) if layer.weights else None
    hidden = output if len(output.shape) == 2 else layers.Flatten()(output)
    model = keras.Model(inputs, layers.Dense(2)(hidden))
    return operation_of(walk(model)[0])


@pytest.fixture(params=sorted(CASES))
def case(request):
    layer, shape = CASES[request.param]
    return operation(layer.__class__.from_config(layer.get_config()), shape), shape


def changes_in_ball(rng, shape, radius, box):
    """Random changes with l2 norm at most the radius and elements inside the box."""
    change = rng.normal(size=(len(radius), *shape)).astype(np.float32)
    sparse = rng.random(change.shape) < rng.choice([0.1, 1.0])
    change *= sparse
    length = np.maximum(np.asarray(norms.norm(change)), 1e-9)
    change *= (radius / length).reshape(-1, *[1] * len(shape)).astype(np.float32)
    return np.clip(change, -box, box)


@pytest.mark.parametrize("radius", [0.03, 0.5, 3.0])
def test_claims_hold_inside_the_ball(case, radius, rng):
    op, shape = case
    x = rng.normal(size=(BATCH, *shape)).astype(np.float32)
    x[0] = 0  # every window and kink tied
    x[1] = np.round(x[1])
    radii = np.full(BATCH, radius, np.float32)
    box = radius * rng.uniform(0.2, 1, size=x.shape).astype(np.float32)
    constant = tf.constant(op.constant(), tf.float32)
    given = ([tf.constant(x)], [tf.constant(box)], [tf.constant(radii)], constant)
    before = op.apply([tf.constant(x)])
    spread = np.asarray(op.spread(*given) * tf.ones_like(before))
    reach = np.asarray(op.reach([tf.constant(radii)], constant))
    cotangent = rng.normal(size=(BATCH, MARGINS, *before.shape[1:])).astype(np.float32)
    (pulled,), lost = op.pull(*given, tf.constant(cotangent))
    pulled, lost = np.asarray(pulled), np.asarray(lost)
    assert (lost >= 0).all() and np.isfinite(pulled).all()
    for _ in range(DRAWS):
        change = changes_in_ball(rng, shape, radii, box)
        after = np.asarray(op.apply([tf.constant(x + change)]) - before)
        assert (np.abs(after) <= spread * (1 + 1e-4) + 1e-5).all()
        assert (np.asarray(norms.norm(after)) <= reach * (1 + 1e-4) + 1e-5).all()
        moved = np.einsum(
            "bmk,bk->bm", cotangent.reshape(BATCH, MARGINS, -1), after.reshape(BATCH, -1)
        )
        least = np.einsum(
            "bmk,bk->bm", pulled.reshape(BATCH, MARGINS, -1), change.reshape(BATCH, -1)
        )
        assert (moved >= least - lost * (1 + 1e-4) - 1e-4).all()


def test_a_ball_of_radius_zero_loses_nothing(case, rng):
    op, shape = case
    x = tf.constant(rng.normal(size=(BATCH, *shape)).astype(np.float32))
    zero = tf.zeros(BATCH)
    constant = tf.constant(op.constant(), tf.float32)
    out = op.apply([x])
    cotangent = tf.constant(rng.normal(size=(BATCH, 1, *out.shape[1:])).astype(np.float32))
    (pulled,), lost = op.pull([x], [tf.zeros_like(x)], [zero], constant, cotangent)
    np.testing.assert_allclose(lost, 0, atol=1e-6)
    if isinstance(op, Lipschitz | ResponseNormalisation):  # no gradient is known, or its diagonal
        return
    with tf.GradientTape() as tape:
        tape.watch(x)
        out = op.apply([x])
    gradient = tape.gradient(out, x, cotangent[:, 0])
    np.testing.assert_allclose(pulled[:, 0], gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        *("relu", "leaky_relu", "relu6", "elu", "selu", "softplus", "sigmoid", "tanh"),
        *("softsign", "silu", "gelu", "hard_sigmoid", "hard_silu"),
    ],
)
def test_slopes_hold_every_chord(name, rng):
    activation = activation_of(keras.activations.get(name))
    x = rng.uniform(-4, 8, 4000).astype(np.float64)
    t = rng.uniform(0, 3, 4000)
    low, high = (
        np.asarray(v)
        for v in activation.slopes(tf.constant(x, tf.float32), tf.constant(t, tf.float32))
    )
    for share in (-1, -0.7, -0.01, 0.01, 0.4, 1):
        step = share * t + 1e-9
        ahead, here = (
            np.asarray(activation.function(tf.constant(v, tf.float64))) for v in (x + step, x)
        )
        chord = (ahead - here) / step
        far = np.abs(step) > 1e-3  # nearer, single precision hides the slope
        assert (chord[far] >= low[far] - 1e-4).all() and (chord[far] <= high[far] + 1e-4).all()
    assert np.abs(np.stack([low, high])).max() <= activation.lipschitz * (1 + 1e-5)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"dense_on_images"}))
def test_rounding_of_one_layer(name, rng):
    """Single against double precision, from inputs that have errors of their own."""
    layer, shape = CASES[name]
    if isinstance(layer, layers.Activation | layers.ReLU | layers.LeakyReLU | layers.ELU):
        shape = (4001,)
        x = np.stack([np.linspace(-20, 20, 4001), np.geomspace(1e-30, 90, 4001)])
        x = np.concatenate([x, -x, rng.normal(size=x.shape)]).astype(np.float32)
    else:
        x = rng.normal(size=(64, *shape)).astype(np.float32)
    op = operation(layer.__class__.from_config(layer.get_config()), shape)
    config = {**layer.get_config(), "dtype": "float64"}
    twin = layer.__class__.from_config(config)
    twin.build((None, *shape))
    if twin.weights:
        twin.set_weights([np.asarray(w, np.float64) for w in op.layer.get_weights()])
    here = op.apply([tf.constant(x)])
    for size, width in ((0.0, 0.0), (1e-6, 0.0), (1e-6, 1.0)):
        # anywhere in a box about x, where inputs have errors
        change = width * rng.uniform(0, 1, x.shape).astype(np.float32)
        moved = (x + change * rng.choice(np.float32([-1, 1]), x.shape)).astype(np.float32)
        computed = op.apply([tf.constant(moved)])
        errors = size * rng.uniform(0, 1, x.shape).astype(np.float32)
        exact = moved + errors.astype(np.float64) * rng.choice([-1, 1], x.shape)
        changes = [tf.constant(np.nextafter(change + np.spacing(np.abs(moved)), np.float32(1e9)))]
        grown = tf.abs(computed - here) * 1.000001
        allowed = op.rounding([tf.constant(x)], changes, here, grown, [tf.constant(errors)])
        error = np.abs(np.asarray(computed, np.float64) - np.asarray(twin(exact)))
        assert (error <= np.asarray(allowed) * (1 + 1e-6) + 1e-6 * size).all()
        if size and not width:
            assert error.max() > np.max(allowed) / 1e4  # not for nothing


MERGES = {
    "add": (layers.Add(), 3),
    "average": (layers.Average(), 3),
    "subtract": (layers.Subtract(), 2),
    "maximum": (layers.Maximum(), 3),
    "minimum": (layers.Minimum(), 2),
    "concatenate": (layers.Concatenate(), 2),
}


@pytest.mark.parametrize("name", sorted(MERGES))
@pytest.mark.parametrize("radius", [0.1, 2.0])
def test_claims_of_merges_hold_inside_the_ball(name, radius, rng):
    layer, count = MERGES[name]
    layer = layer.__class__.from_config(layer.get_config())
    inputs = keras.Input((5,))
    branches = [layers.Dense(5)(inputs) for _ in range(count)]
    op = operation_of(walk(keras.Model(inputs, layers.Dense(2)(layer(branches))))[count])
    xs = [rng.normal(size=(BATCH, 5)).astype(np.float32) for _ in range(count)]
    boxes = [radius * rng.uniform(0.2, 1, size=x.shape).astype(np.float32) for x in xs]
    radii = [rng.uniform(0.5, 1, BATCH).astype(np.float32) * radius for _ in range(count)]
    constant = tf.constant(op.constant(), tf.float32)
    given = ([tf.constant(x) for x in xs], [tf.constant(b) for b in boxes])
    given += ([tf.constant(r) for r in radii], constant)
    before = op.apply(given[0])
    np.testing.assert_allclose(before, layer(given[0]), rtol=1e-6, atol=1e-6)
    spread = np.asarray(op.spread(*given) * tf.ones_like(before))
    reach = np.asarray(op.reach(given[2], constant))
    cotangent = rng.normal(size=(BATCH, MARGINS, *before.shape[1:])).astype(np.float32)
    pulled, lost = op.pull(*given, tf.constant(cotangent))
    for _ in range(DRAWS):
        changes = [changes_in_ball(rng, (5,), r, b) for r, b in zip(radii, boxes, strict=True)]
        moved = [tf.constant(x + c) for x, c in zip(xs, changes, strict=True)]
        after = np.asarray(op.apply(moved) - before)
        assert (np.abs(after) <= spread * (1 + 1e-4) + 1e-5).all()
        assert (np.asarray(norms.norm(after)) <= reach * (1 + 1e-4) + 1e-5).all()
        gained = np.einsum("bmk,bk->bm", cotangent, after)
        least = sum(np.einsum("bmk,bk->bm", p, c) for p, c in zip(pulled, changes, strict=True))
        assert (gained >= least - np.asarray(lost) * (1 + 1e-4) - 1e-4).all()


def test_heaviest_load_against_a_solver(rng):
    from scipy.optimize import minimize

    for _ in range(15):
        w, t = rng.uniform(0, 1, 8), rng.uniform(0, 1, 8)
        w[0], t[1] = 0, 0
        reach = rng.uniform(0.1, 2)
        best = minimize(
            lambda v: -w @ v,
            np.minimum(t, reach / 4),
            jac=lambda v: -w,
            bounds=[(0, cap) for cap in t],
            constraints={"type": "ineq", "fun": lambda v: reach**2 - v @ v},
            method="SLSQP",
        )
        bound = float(
            heaviest_load(
                tf.constant(w[None, None], tf.float32),
                tf.constant(t[None], tf.float32),
                tf.constant([reach], tf.float32),
            )[0, 0]
        )
        assert -best.fun * (1 - 1e-4) <= bound <= -best.fun * 1.1


def test_lrn_constant_bounds_its_jacobian(rng):
    """Gradient ascent on the Jacobian's norm finds nothing above the constant."""
    for layer in (
        LocalResponseNormalization(),
        LocalResponseNormalization(depth_radius=1, bias=1.0, alpha=0.5, beta=0.75),
        LocalResponseNormalization(depth_radius=3, bias=0.5, alpha=2.0, beta=1.5),
    ):
        bound = operation(layer, (1, 1, 7)).constant()
        # in units in which alpha is 1
        u = tf.Variable(rng.normal(size=(32, 1, 1, 7)).astype(np.float32))
        optimizer = keras.optimizers.Adam(0.05)

        @tf.function
        def ascend(layer=layer, u=u):
            with tf.GradientTape() as outer:
                x = u / layer.alpha**0.5
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    y = layer(x)
                jacobian = tf.reshape(tape.batch_jacobian(y, x), (32, 7, 7))
                # the Frobenius norm of a power: smooth, and led by the largest singular value
                gram = tf.linalg.matmul(jacobian, jacobian, transpose_a=True)
                fourth = tf.linalg.matmul(gram, gram)
                goal = -tf.reduce_sum(tf.math.log(tf.norm(fourth, axis=(1, 2))))
            return outer.gradient(goal, u), jacobian

        norm = 0.0
        for _ in range(120):
            gradient, jacobian = ascend()
            norm = max(norm, float(tf.reduce_max(tf.linalg.svd(jacobian, compute_uv=False))))
            optimizer.apply([gradient], [u])
        assert norm <= bound <= 4 * norm
