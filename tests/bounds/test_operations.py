"""Every operation's claims, tried with random changes inside the ball they are made for."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.nets import randomise

from tfrobust import norms
from tfrobust.bounds.certified.rules import operation_of
from tfrobust.bounds.graph import graph_steps
from tfrobust.bounds.operations.base import InputBounds, Lipschitz
from tfrobust.bounds.operations.response_normalization import ResponseNormalization
from tfrobust.bounds.operations.slopes import activation_of
from tfrobust.bounds.operations.support_function import RowGram, support_function_bound
from tfrobust.layers import LocalResponseNormalization, LpPooling2D

layers = keras.layers
IMAGE, VECTOR = (6, 6, 4), (9,)
BATCH, MARGINS, DRAWS = 6, 3, 12

CASES = {
    "conv": (layers.Conv2D(3, 3), IMAGE),
    "conv_stride": (layers.Conv2D(4, 3, strides=2, padding="same", groups=2), IMAGE),
    "depthwise": (layers.DepthwiseConv2D(3, depth_multiplier=2), IMAGE),
    "separable": (layers.SeparableConv2D(3, 3, strides=2, depth_multiplier=2), IMAGE),
    "separable_1d": (layers.SeparableConv1D(3, 2, padding="same"), (9, 2)),
    "conv1d": (layers.Conv1D(3, 2, padding="causal"), (9, 2)),
    "dense": (layers.Dense(5), VECTOR),
    "dense_on_images": (layers.Dense(5), IMAGE),
    "batch_normalization": (layers.BatchNormalization(), IMAGE),
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
    return operation_of(graph_steps(model)[0])


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
    lipschitz = tf.constant(op.lipschitz_constant(), tf.float32)
    inputs = InputBounds([tf.constant(x)], [tf.constant(box)], [tf.constant(radii)], lipschitz)
    before = op.apply([tf.constant(x)])
    elementwise = np.asarray(op.elementwise_bound(inputs) * tf.ones_like(before))
    l2 = np.asarray(op.l2_bound([tf.constant(radii)], lipschitz))
    cotangent = rng.normal(size=(BATCH, MARGINS, *before.shape[1:])).astype(np.float32)
    (relaxed,), loss = op.relax_backward(inputs, tf.constant(cotangent))
    relaxed, loss = np.asarray(relaxed), np.asarray(loss)
    assert (loss >= 0).all() and np.isfinite(relaxed).all()
    for _ in range(DRAWS):
        change = changes_in_ball(rng, shape, radii, box)
        after = np.asarray(op.apply([tf.constant(x + change)]) - before)
        assert (np.abs(after) <= elementwise * (1 + 1e-4) + 1e-5).all()
        assert (np.asarray(norms.norm(after)) <= l2 * (1 + 1e-4) + 1e-5).all()
        true = np.einsum(
            "bmk,bk->bm", cotangent.reshape(BATCH, MARGINS, -1), after.reshape(BATCH, -1)
        )
        linear = np.einsum(
            "bmk,bk->bm", relaxed.reshape(BATCH, MARGINS, -1), change.reshape(BATCH, -1)
        )
        assert (true >= linear - loss * (1 + 1e-4) - 1e-4).all()


def test_a_ball_of_radius_zero_loses_nothing(case, rng):
    op, shape = case
    x = tf.constant(rng.normal(size=(BATCH, *shape)).astype(np.float32))
    zero = tf.zeros(BATCH)
    inputs = InputBounds(
        [x], [tf.zeros_like(x)], [zero], tf.constant(op.lipschitz_constant(), tf.float32)
    )
    out = op.apply([x])
    cotangent = tf.constant(rng.normal(size=(BATCH, 1, *out.shape[1:])).astype(np.float32))
    (relaxed,), loss = op.relax_backward(inputs, cotangent)
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    if isinstance(op, Lipschitz | ResponseNormalization):  # no gradient is known, or its diagonal
        return
    with tf.GradientTape() as tape:
        tape.watch(x)
        out = op.apply([x])
    gradient = tape.gradient(out, x, cotangent[:, 0])
    np.testing.assert_allclose(relaxed[:, 0], gradient, rtol=1e-3, atol=1e-4)


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
        at_end, at_center = (
            np.asarray(activation.function(tf.constant(v, tf.float64))) for v in (x + step, x)
        )
        chord = (at_end - at_center) / step
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
    at_center = op.apply([tf.constant(x)])
    for size, width in ((0.0, 0.0), (1e-6, 0.0), (1e-6, 1.0)):
        # anywhere in a box about x, where inputs have errors
        change = width * rng.uniform(0, 1, x.shape).astype(np.float32)
        perturbed = (x + change * rng.choice(np.float32([-1, 1]), x.shape)).astype(np.float32)
        computed = op.apply([tf.constant(perturbed)])
        errors = size * rng.uniform(0, 1, x.shape).astype(np.float32)
        exact = perturbed + errors.astype(np.float64) * rng.choice([-1, 1], x.shape)
        changes = [
            tf.constant(np.nextafter(change + np.spacing(np.abs(perturbed)), np.float32(1e9)))
        ]
        grown = tf.abs(computed - at_center) * 1.000001
        allowed = op.rounding_error(
            [tf.constant(x)], changes, at_center, grown, [tf.constant(errors)]
        )
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
    op = operation_of(graph_steps(keras.Model(inputs, layers.Dense(2)(layer(branches))))[count])
    xs = [rng.normal(size=(BATCH, 5)).astype(np.float32) for _ in range(count)]
    boxes = [radius * rng.uniform(0.2, 1, size=x.shape).astype(np.float32) for x in xs]
    radii = [rng.uniform(0.5, 1, BATCH).astype(np.float32) * radius for _ in range(count)]
    inputs = InputBounds(
        values=[tf.constant(x) for x in xs],
        elementwise=[tf.constant(b) for b in boxes],
        l2=[tf.constant(r) for r in radii],
        lipschitz=tf.constant(op.lipschitz_constant(), tf.float32),
    )
    before = op.apply(inputs.values)
    np.testing.assert_allclose(before, layer(inputs.values), rtol=1e-6, atol=1e-6)
    elementwise = np.asarray(op.elementwise_bound(inputs) * tf.ones_like(before))
    l2 = np.asarray(op.l2_bound(inputs.l2, inputs.lipschitz))
    cotangent = rng.normal(size=(BATCH, MARGINS, *before.shape[1:])).astype(np.float32)
    relaxed, loss = op.relax_backward(inputs, tf.constant(cotangent))
    for _ in range(DRAWS):
        changes = [changes_in_ball(rng, (5,), r, b) for r, b in zip(radii, boxes, strict=True)]
        perturbed = [tf.constant(x + c) for x, c in zip(xs, changes, strict=True)]
        after = np.asarray(op.apply(perturbed) - before)
        assert (np.abs(after) <= elementwise * (1 + 1e-4) + 1e-5).all()
        assert (np.asarray(norms.norm(after)) <= l2 * (1 + 1e-4) + 1e-5).all()
        true = np.einsum("bmk,bk->bm", cotangent, after)
        linear = sum(np.einsum("bmk,bk->bm", a, d) for a, d in zip(relaxed, changes, strict=True))
        assert (true >= linear - np.asarray(loss) * (1 + 1e-4) - 1e-4).all()


def test_support_function_against_a_solver(rng):
    from scipy.optimize import minimize

    for _ in range(15):
        w, t = rng.uniform(0, 1, 8), rng.uniform(0, 1, 8)
        w[0], t[1] = 0, 0
        radius = rng.uniform(0.1, 2)
        best = minimize(
            lambda v: -w @ v,
            np.minimum(t, radius / 4),
            jac=lambda v: -w,
            bounds=[(0, cap) for cap in t],
            constraints={"type": "ineq", "fun": lambda v: radius**2 - v @ v},
            method="SLSQP",
        )
        bound = float(
            support_function_bound(
                tf.constant(w[None, None], tf.float32),
                tf.constant(t[None], tf.float32),
                tf.constant([radius], tf.float32),
            )[0, 0]
        )
        assert -best.fun * (1 - 1e-4) <= bound <= -best.fun * 1.1


def test_support_function_behind_a_dense_layer(rng):
    """sup of sum w_i |<a_i, d>| over ||d|| <= 1: exact for orthogonal rows, else from above."""
    w = rng.uniform(0.2, 1, 6)

    def bound(rows, **options):
        box, radius = np.linalg.norm(rows, axis=1), np.linalg.norm(rows, 2)
        arguments = (tf.constant(each, tf.float32) for each in (w[None, None], box[None], [radius]))
        return float(support_function_bound(*arguments, **options)[0, 0])

    def gram(rows):
        return RowGram(tf.constant(np.abs(rows @ rows.T), tf.float32), tf.constant(1.0), tf.ones(1))

    orthogonal = np.diag([3, 2, 1, 0.5, 0.2, 0.1]) @ np.linalg.qr(rng.normal(size=(6, 6)))[0]
    exact = np.linalg.norm(w * np.linalg.norm(orthogonal, axis=1))
    assert exact * (1 - 1e-5) <= bound(orthogonal, gram=gram(orthogonal)) <= exact * (1 + 1e-5)
    assert bound(orthogonal) > 1.05 * exact
    d = rng.normal(size=(5_000, 4))
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    for _ in range(5):
        rows = rng.normal(size=(6, 4))
        reached = (np.abs(d @ rows.T) @ w).max()
        assert reached <= bound(rows, gram=gram(rows)) * (1 + 1e-6)


def test_lrn_constant_bounds_its_jacobian(rng):
    """Gradient ascent on the Jacobian's norm finds nothing above the constant."""
    for layer in (
        LocalResponseNormalization(),
        LocalResponseNormalization(depth_radius=3, bias=0.5, alpha=2.0, beta=1.5),
    ):
        bound = operation(layer, (1, 1, 7)).lipschitz_constant()
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
