"""Gradient methods against hand arithmetic, against numpy, and beside the tools Keras has."""

import contextlib
import dataclasses
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras.optimizers import SGD

from customstep import Objective, StepModel
from customstep.gradients import (
    AdaptiveClipping,
    GradientCentralization,
    GradientSurgery,
    GradientTransform,
    SharpnessAware,
    SignDescent,
    clip_by_unit,
    surgery_weights,
)
from tests.descriptors import (
    CLASSES,
    FEATURES,
    IMAGES,
    TwoTerms,
    equal,
    functional_classifier,
    gan,
    two_heads,
)
from tests.test_examples import load

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
METHODS = (
    AdaptiveClipping(0.1),
    GradientCentralization(),
    GradientSurgery(),
    SharpnessAware(0.1),
    SharpnessAware(0.5, adaptive=True),
    SignDescent(),
)
X, Y = np.ones((1, 1), "float32"), np.full((1, 1), 3, "float32")


def slope(gradients, w=1.0, rate=0.1, **arguments):
    """y = w x, from w on, with the loss (w - 3)^2 at `X`, `Y`."""
    inputs = keras.Input((1,))
    outputs = layers.Dense(1, use_bias=False, kernel_initializer="ones")(inputs)
    model = StepModel(inputs=inputs, outputs=outputs)
    model.set_weights([np.full((1, 1), w)])
    model.compile(SGD(rate), "mse", gradients=gradients, **arguments)
    return model


def weight(model):
    return float(model.get_weights()[0][0, 0])


def perceptron(cls=StepModel, dtype=None):
    """A classifier without anything random; `dtype` is that of its last layer."""
    inputs = keras.Input((6,))
    hidden = layers.Dense(8, "tanh")(inputs)
    return cls(inputs=inputs, outputs=layers.Dense(3, dtype=dtype)(hidden))


def descend(model, gradients, steps=3, rate=0.1, **arguments):
    """The weights after some steps on all of the data."""
    if not isinstance(model, TwoTerms):
        arguments["loss"] = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(SGD(rate), gradients=gradients, **arguments)
    model.fit(FEATURES, CLASSES, batch_size=24, epochs=steps, shuffle=False, verbose=0)
    return model.get_weights()


def clone(make, *arguments):
    """The same weights and random states every time."""
    keras.utils.set_random_seed(0)
    return make(*arguments)


# Transforms of one gradient


@keras.saving.register_keras_serializable("tests")
@dataclasses.dataclass(frozen=True)
class Affine(GradientTransform):
    factor: float = 1.0
    offset: float = 0.0

    def transform(self, gradient, variable):
        return self.factor * gradient + self.offset


def test_transform_of_ones_own_is_applied():
    model = slope(Affine(2.0))  # the gradient at 1 is -4
    model.train_on_batch(X, Y)
    assert weight(model) == pytest.approx(1 + 0.1 * 2 * 4)


@pytest.mark.parametrize(
    "methods, gradient",
    [
        ([Affine(2.0), Affine(1.0, 1.0)], -4 * 2 + 1),
        ([Affine(1.0, 1.0), Affine(2.0)], (-4 + 1) * 2),
    ],
    ids=["double_first", "add_first"],
)
def test_first_method_is_the_nearest_to_the_loss(methods, gradient):
    model = slope(methods)
    model.train_on_batch(X, Y)
    assert weight(model) == pytest.approx(1 - 0.1 * gradient)


def test_centralization_takes_the_mean_of_each_unit():
    kernel = tf.constant([[1.0, 2.0], [3.0, 10.0]])  # two inputs, two units: means 2 and 6
    centered = GradientCentralization().transform(kernel, None)
    assert centered.numpy().tolist() == [[-1, -4], [1, 4]]
    convolution = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype("float32")
    centered = GradientCentralization().transform(tf.constant(convolution), None).numpy()
    for unit in range(5):
        expected = convolution[..., unit] - convolution[..., unit].mean()
        np.testing.assert_allclose(centered[..., unit], expected, atol=1e-6)


def test_centralization_leaves_vectors_alone():
    bias = tf.constant([1.0, 3.0])
    assert GradientCentralization().transform(bias, None) is bias


def test_centralized_descent_keeps_the_mean_of_every_units_weights():
    model = clone(perceptron)
    before = model.get_weights()
    after = descend(model, GradientCentralization())
    for a, b in zip(before, after):
        assert not np.array_equal(a, b)
    for a, b in zip(before[::2], after[::2]):  # the kernels
        np.testing.assert_allclose(a.mean(0), b.mean(0), atol=1e-6)


def test_sign_descent_moves_every_weight_by_the_rate():
    model = clone(perceptron)
    before = model.get_weights()
    moved = [a - b for a, b in zip(descend(model, SignDescent(), steps=1, rate=0.25), before)]
    for change in moved:
        np.testing.assert_allclose(np.abs(change), 0.25, rtol=1e-5)


def test_adaptive_clipping_by_hand():
    weights = tf.constant([[3.0, 0.0, 0.3], [4.0, 0.0, 0.4]])  # norms 5, 0, 0.5
    gradients = tf.constant([[6.0, 3.0, 0.0], [8.0, 4.0, 0.01]])  # norms 10, 5, 0.01
    clipped = clip_by_unit(gradients, weights, ratio=0.1, epsilon=0.2)
    # The limits are 0.5, 0.1 times epsilon, and 0.05, which is not reached.
    expected = [[0.3, 0.012, 0.0], [0.4, 0.016, 0.01]]
    np.testing.assert_allclose(clipped, expected, rtol=1e-5)


def test_adaptive_clipping_takes_a_vector_as_one_unit():
    clipped = clip_by_unit(tf.constant([30.0, 40.0]), tf.constant([0.6, 0.8]), 0.5, 1e-3)
    np.testing.assert_allclose(clipped, [0.3, 0.4], rtol=1e-5)


def test_adaptive_clipping_of_a_zero_gradient_is_zero():
    clipped = clip_by_unit(tf.zeros((2, 2)), tf.zeros((2, 2)), 0.01, 1e-3)
    assert clipped.numpy().tolist() == [[0, 0], [0, 0]]


def test_adaptive_clipping_bounds_every_step():
    model = clone(perceptron)
    before = model.get_weights()
    after = descend(model, AdaptiveClipping(0.01), steps=1, rate=1.0)
    for w, change in zip(before[::2], (a - b for a, b in zip(after[::2], before[::2]))):
        ratio = np.linalg.norm(change, axis=0) / np.linalg.norm(w, axis=0)
        assert (ratio < 0.01 * 1.001).all() and ratio.max() > 0.0099


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_embeddings_and_unused_weights_go_through(method):
    """Rows of a table that a batch does not name have no gradient; nor has an unused layer."""

    class Table(StepModel):
        terms = ("a", "b")

        def __init__(self):
            super().__init__()
            self.table, self.unused = layers.Embedding(4, 2), layers.Dense(1)
            self.unused.build((None, 2))

        def call(self, x):
            return self.table(x)

        def objective(self, batch, training):
            y = self(batch.x)
            return Objective({"a": tf.reduce_mean((y - 1) ** 2), "b": tf.reduce_mean(y[:, 0])})

    def move(gradients):
        model = clone(Table)
        model.compile(SGD(0.1), gradients=gradients)
        model(np.zeros(1))
        before = model.table.get_weights()[0]
        with pytest.warns(UserWarning, match="Gradients do not exist"):
            model.train_on_batch(np.array([0, 2, 2]))
        return model.table.get_weights()[0] - before

    moved = move(method)
    assert np.isfinite(moved).all() and moved[[0, 2]].any(axis=1).all()
    if not isinstance(method, GradientCentralization):
        assert not moved[[1, 3]].any()
    np.testing.assert_array_equal(move(Affine()), move(None))


def test_transform_sees_unscaled_gradients_in_float16():
    seen = {}

    class Recorded(GradientTransform):
        def transform(self, gradient, variable):
            seen.setdefault(keras.config.dtype_policy().name, []).append(gradient.numpy())
            return gradient

    for policy in ("float32", "mixed_float16"):
        keras.mixed_precision.set_global_policy(policy)
        descend(clone(perceptron), Recorded(), steps=1, run_eagerly=True)
    assert {gradient.dtype.name for gradient in seen["mixed_float16"]} == {"float32"}
    for a, b in zip(seen["float32"], seen["mixed_float16"], strict=True):
        np.testing.assert_allclose(a, b, atol=5e-3)  # the scale is 32768


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_overflow_in_float16_is_seen_through_every_method(method):
    """The sign of infinity is finite: a step that hides it would never lower the scale."""
    keras.mixed_precision.set_global_policy("mixed_float16")
    model = clone(functional_classifier, TwoTerms)
    model.compile(SGD(0.1), gradients=method)
    model.optimizer.dynamic_scale.assign(1e38)
    before = [np.array(v) for v in model.trainable_variables]
    model.fit(FEATURES, CLASSES, batch_size=24, verbose=0)
    assert equal(before, [np.array(v) for v in model.trainable_variables])
    assert float(model.optimizer.dynamic_scale.numpy()) == pytest.approx(0.5e38)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize(
    "policy, head, atol", [("float16", None, 2e-3), ("bfloat16", "float32", 2e-2)]
)
def test_weights_of_half_precision_descend_as_those_of_float32(method, policy, head, atol):
    """Here the weights are of half precision, unlike those under a mixed policy."""
    plain = perceptron(TwoTerms)
    before = plain.get_weights()
    expected = descend(plain, method, steps=1, rate=0.25)
    keras.config.set_dtype_policy(policy)
    half = perceptron(TwoTerms, head)
    half.set_weights(before)
    received = descend(half, method, steps=1, rate=0.25)
    assert [v.dtype for v in half.trainable_variables] == [policy] * 2 + [head or policy] * 2
    for start, a, b in zip(before, expected, received):
        assert not np.array_equal(a, start)
        np.testing.assert_allclose(np.float32(b), a, atol=atol)


# Sharpness-aware minimization


def test_sharpness_aware_step_by_hand():
    """At w = 1 the slope is -4, so the worst point is 0.5, where it is 2 (0.5 - 3) = -5."""
    model = slope(SharpnessAware(0.5))
    logs = model.train_on_batch(X, Y, return_dict=True)
    assert weight(model) == pytest.approx(1 + 0.1 * 5)
    assert logs["loss"] == 4  # (1 - 3)^2, at w itself


def test_adaptive_step_by_hand():
    """Distances are relative to |w| + 0.01 = 2.01: the worst point is 2 - 0.5 * 2.01 = 0.995."""
    model = slope(SharpnessAware(0.5, adaptive=True), w=2.0)
    model.train_on_batch(X, Y)
    assert weight(model) == pytest.approx(2 - 0.1 * 2 * (0.995 - 3))


def test_sharpness_aware_at_the_minimum_stays_there():
    model = slope(SharpnessAware(0.5), w=3.0)
    model.train_on_batch(X, Y)
    assert weight(model) == 3


def test_radius_is_shared_by_all_variables():
    """Logistic regression in numpy: one norm over kernel and bias."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(8, 3)), rng.integers(0, 2, (8, 1)).astype(float)
    inputs = keras.Input((3,))
    model = StepModel(inputs=inputs, outputs=layers.Dense(1)(inputs))
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    w, b = (parameter.astype(float) for parameter in model.get_weights())

    def gradient(w, b):
        error = (1 / (1 + np.exp(-(x @ w + b))) - y) / len(x)
        return x.T @ error, error.sum(0)

    for _ in range(4):
        dw, db = gradient(w, b)
        reach = 0.3 / np.sqrt((dw**2).sum() + (db**2).sum())
        dw, db = gradient(w + reach * dw, b + reach * db)
        w, b = w - 0.5 * dw, b - 0.5 * db
    model.compile(SGD(0.5), loss, gradients=SharpnessAware(0.3))
    model.fit(x.astype("float32"), y, batch_size=8, epochs=4, verbose=0)
    for ours, expected in zip(model.get_weights(), (w, b)):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_sharpness_aware_step_moves_statistics_and_random_states_once():
    plain, aware = clone(functional_classifier), clone(functional_classifier)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    logs = []
    for model, gradients in ((plain, None), (aware, SharpnessAware(0.5))):
        model.compile(SGD(0.1), loss, metrics=["accuracy"], gradients=gradients)
        logs.append(model.train_on_batch(FEATURES, CLASSES, return_dict=True))
    untrained = [
        [np.array(v) for v in model.variables if not v.trainable] for model in (plain, aware)
    ]
    assert len(untrained[0]) == 3  # mean, variance, and the state of the dropout
    assert equal(*untrained)
    assert logs[0] == logs[1]
    assert not equal(plain.get_weights(), aware.get_weights())


@pytest.mark.parametrize("eager", [False, True], ids=["graph", "eager"])
def test_all_evaluations_of_a_descent_see_the_same_dropout(eager):
    def thrice(compute, variables, **how):
        """Logs how far two further evaluations at the same weights are from the first."""
        values = [tf.convert_to_tensor(variable.value) for variable in variables]
        (gradients, first), *others = compute(), compute(at=values), compute(at=values)
        distance = tf.reduce_max([abs(other.total - first.total) for _, other in others])
        return gradients, first._replace(logs={"distance": distance})

    class Noisy(StepModel):
        terms = ("size", "distance")

        def objective(self, batch, training):
            return Objective({"size": tf.reduce_mean(self(batch.x, training=training) ** 2)})

    model = functional_classifier(Noisy)
    model.compile(SGD(0.1), gradients=thrice, run_eagerly=eager)
    model.optimizer.learning_rate = 0.0
    history = model.fit(FEATURES, batch_size=24, epochs=2, verbose=0).history
    assert max(history["distance"]) == pytest.approx(0, abs=1e-6)
    # The dropout of the next step is another one.
    assert abs(history["size"][1] - history["size"][0]) > 1e-3


def test_discriminator_alone_can_be_sharpness_aware():
    """Against the same step with weights that are moved there and back."""
    model = clone(gan)
    optimizers = {name: SGD(0.1) for name in ("discriminator", "generator")}
    model.compile(optimizers, gradients={"discriminator": SharpnessAware(0.3)})
    by_hand = clone(gan)
    by_hand.compile({name: SGD(0.1) for name in optimizers})
    [update, _] = by_hand.updates()
    batch = by_hand._receive((tf.constant(IMAGES),), training=True)
    random = [variable for variable in by_hand.variables if "seed" in variable.path]
    assert random
    seeds = [np.array(variable) for variable in random]
    gradients, _ = by_hand.differentiate(update, batch)
    norm = np.sqrt(sum((g.numpy() ** 2).sum() for g in gradients))
    weights = [np.array(variable) for variable in update.variables]
    for variable, w, g in zip(update.variables, weights, gradients):
        variable.assign(w + 0.3 * g.numpy() / norm)
    for variable, seed in zip(random, seeds):
        variable.assign(seed)
    gradients, _ = by_hand.differentiate(update, batch)
    model.train_on_batch(IMAGES)
    for variable, w, g in zip(model.discriminator.trainable_variables, weights, gradients):
        np.testing.assert_allclose(variable, w - 0.1 * g.numpy(), atol=2e-6)


# Gradient surgery


def projected_sum(gradients):
    """Yu et al. 2020, algorithm 1, on numpy vectors; each meets those after it first."""
    total = 0
    for i, gradient in enumerate(gradients):
        g = gradient.copy()
        for j in range(i + 1, i + len(gradients)):
            other = gradients[j % len(gradients)]
            if g @ other < 0:
                g -= (g @ other) / (other @ other) * other
        total = total + g
    return total


class Linear(StepModel):
    """Terms that are linear in two weights, whose gradients are the vectors in `batch.x`."""

    def call(self, x):
        return x

    def build(self, shape):
        self.weight = self.add_weight(shape=(2,), initializer="zeros", name="weight")
        self.built = True

    def objective(self, batch, training):
        vectors = zip(self.terms, tf.unstack(batch.x, len(self.terms)))
        return Objective({name: tf.reduce_sum(g * self.weight) for name, g in vectors})


def direction(vectors, gradients):
    """Where plain descent goes from 0, given the gradient of each term."""

    class Terms(Linear):
        terms = tuple("abc"[: len(vectors)])

    model = Terms()
    model.build(None)
    model.compile(SGD(1.0), gradients=gradients)
    model.fit(np.array(vectors, "float32"), batch_size=len(vectors), shuffle=False, verbose=0)
    return -model.get_weights()[0]


def test_two_conflicting_terms_by_hand():
    """(1, 0) loses half of its way along (-1, 1), and (-1, 1) all of its way along (1, 0)."""
    expected = np.array([0.5, 0.5]) + np.array([0.0, 1.0])
    np.testing.assert_allclose(direction([(1, 0), (-1, 1)], GradientSurgery()), expected)


def test_terms_that_agree_are_summed():
    np.testing.assert_array_equal(direction([(1, 0), (1, 1)], GradientSurgery()), (2, 1))


def test_opposite_terms_cancel():
    np.testing.assert_allclose(direction([(1, 2), (-2, -4)], GradientSurgery()), (0, 0), atol=1e-6)


def test_term_without_slope_is_left_out():
    np.testing.assert_array_equal(direction([(0, 0), (1, 1)], GradientSurgery()), (1, 1))


def test_three_terms_follow_the_algorithm():
    vectors = np.array([(1.0, 0.2), (-1.0, 0.4), (0.1, -1.0)])
    assert (vectors @ vectors.T < 0).sum() == 6  # each conflicts with each
    np.testing.assert_allclose(
        direction(vectors, GradientSurgery()), projected_sum(vectors), rtol=1e-5
    )


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_weights_of_the_gradients_give_the_projected_sum(count, rng):
    for _ in range(5):
        vectors = rng.normal(size=(count, 6))
        weights = surgery_weights(tf.constant(vectors @ vectors.T)).numpy()
        np.testing.assert_allclose(weights @ vectors, projected_sum(vectors), atol=1e-12)


def test_one_term_warns_and_is_the_plain_gradient_bit_for_bit():
    arguments = dict(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    weights = []
    for gradients in (None, GradientSurgery()):
        model = clone(functional_classifier)
        model.compile(SGD(0.1), gradients=gradients, **arguments)
        alone = "nothing to do.*received 'loss' alone. Use AuxiliaryLoss, or return one term per"
        with pytest.warns(match=alone) if gradients else contextlib.nullcontext():
            model.fit(FEATURES, CLASSES, batch_size=8, epochs=2, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    assert equal(*weights)


def test_conflict_is_judged_over_all_variables_together():
    """They oppose one another in the first weight only, and agree on the whole: no surgery."""

    class Split(StepModel):
        terms = ("a", "b")

        def call(self, x):
            return x

        def build(self, shape):
            self.first = self.add_weight(shape=(), initializer="zeros", name="first")
            self.second = self.add_weight(shape=(), initializer="zeros", name="second")
            self.third = self.add_weight(shape=(), initializer="zeros", name="third")
            self.built = True

        def objective(self, batch, training):
            a = self.first + 2 * self.second + self.third  # `third` has no gradient of `b`
            return Objective({"a": a, "b": 2 * self.second - self.first})

    model = Split()
    model.build(None)
    model.compile(SGD(1.0), gradients=GradientSurgery())
    model.fit(np.ones((1, 1)), verbose=0)
    assert [float(w) for w in model.get_weights()] == [0, -4, -1]


def test_surgery_and_sharpness_compose():
    """The worst point is sought along the operated gradient, and operated on again there."""
    weights = [
        descend(clone(perceptron, TwoTerms), methods)
        for methods in (GradientSurgery(), [GradientSurgery(), SharpnessAware(0.1)])
    ]
    assert all(np.isfinite(w).all() for w in weights[1])
    assert not equal(*weights)


# Everywhere


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_two_replicas_descend_as_one(method, two_replicas):
    one = descend(clone(perceptron, TwoTerms), method)
    with two_replicas.scope():
        two = descend(clone(perceptron, TwoTerms), method)
    for a, b in zip(one, two):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_methods_are_saved_and_loaded(method, tmp_path):
    model = clone(functional_classifier, TwoTerms)
    model.compile(SGD(0.1), gradients={"model": [method, Affine(0.5)]})
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_compile_config() == model.get_compile_config()
    for one in (model, loaded):
        one.fit(FEATURES, CLASSES, batch_size=8, shuffle=False, verbose=0)
    assert equal(model.get_weights(), loaded.get_weights())


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SharpnessAware(0), r"`radius` is out of its range\. Expected a number in \(0"),
        (lambda: SharpnessAware("far"), "received 'far'"),
        (lambda: AdaptiveClipping(-1), "`ratio` is out of its range"),
        (lambda: AdaptiveClipping(0.01, 0), "`epsilon` is out of its range"),
        (
            lambda: slope([SharpnessAware(), GradientSurgery()]),
            r"out of place\. Expected GradientSurgery\(\) first.*received it at place 2",
        ),
        (lambda: slope({"generator": SignDescent()}), "an update that does not exist"),
    ],
    ids=["zero", "no_number", "ratio", "epsilon", "order", "name"],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_no_method_is_refused():
    with pytest.raises(TypeError, match="cannot be called.*received 0.05.*GradientTransform"):
        slope(0.05)


# What Keras's optimizers do by themselves


def train_two_heads(batches=(FEATURES,), **main):
    """Weights of main and head before and after, where only main's optimizer has the option."""
    model = clone(two_heads)
    optimizers = {"main": SGD(0.1, **main), "head": SGD(0.1)}
    model.compile(optimizers)
    updates = {update.name: update.variables for update in model.updates()}

    def weights(name):
        return [np.array(variable) for variable in updates[name]]

    before = weights("main")
    for batch in batches:
        model.train_on_batch(batch, CLASSES[: len(batch)])
    model.optimizer.finalize_variable_values(model.trainable_variables)  # as `fit` does
    return before, weights("main"), weights("head")


def test_clipping_by_norm_is_that_of_its_update_only():
    before, plain, head = train_two_heads()
    _, clipped, head_beside = train_two_heads(clipnorm=0.01)
    assert equal(head, head_beside)
    for w, a, b in zip(before, plain, clipped):
        step = (a - w) * min(1, 0.1 * 0.01 / np.linalg.norm(a - w))
        np.testing.assert_allclose(b - w, step, atol=1e-7)


def test_clipping_by_global_norm_is_that_of_its_update_only():
    before, plain, head = train_two_heads()
    _, clipped, head_beside = train_two_heads(global_clipnorm=0.01)
    assert equal(head, head_beside)
    norm = np.sqrt(sum(((a - w) ** 2).sum() for w, a in zip(before, plain)))
    assert norm > 0.1 * 0.01
    for w, a, b in zip(before, plain, clipped):
        np.testing.assert_allclose(b - w, (a - w) * 0.1 * 0.01 / norm, atol=1e-7)


def test_weight_decay_is_that_of_its_update_only():
    before, plain, head = train_two_heads()
    _, decayed, head_beside = train_two_heads(weight_decay=0.5)
    assert equal(head, head_beside)
    for w, a, b in zip(before, plain, decayed):
        np.testing.assert_allclose(b, a - 0.1 * 0.5 * w, atol=1e-6)


def test_average_of_weights_is_that_of_its_update_only():
    halves = FEATURES[:12], FEATURES[12:]
    _, first, _ = train_two_heads(batches=halves[:1])
    _, second, head = train_two_heads(batches=halves)
    _, averaged, head_beside = train_two_heads(batches=halves, use_ema=True, ema_momentum=0.75)
    assert equal(head, head_beside)
    for a, b, mean in zip(first, second, averaged):  # the mean starts at the first weights
        np.testing.assert_allclose(mean, 0.75 * a + 0.25 * b, atol=1e-6)


def test_accumulated_gradients_are_those_of_their_update_only():
    """Nothing for one step, then the mean of two gradients at the same weights."""
    halves = FEATURES[:12], FEATURES[12:]
    before, waiting, _ = train_two_heads(batches=halves[:1], gradient_accumulation_steps=2)
    assert equal(before, waiting)
    _, _, head = train_two_heads(batches=halves)
    _, moved, head_beside = train_two_heads(batches=halves, gradient_accumulation_steps=2)
    assert equal(head, head_beside)
    singles = [train_two_heads(batches=[half])[1] for half in halves]
    for a, b, both in zip(*singles, moved):
        np.testing.assert_allclose(both, (a + b) / 2, atol=1e-7)


# The examples


def test_sharpness_aware_example_leaves_what_it_promises(tmp_path):
    results = load(EXAMPLES / "sharpness_aware.py").main(["--smoke", "--out", str(tmp_path)])
    shapes = {name: np.shape(runs) for name, runs in results.items()}
    assert shapes == {"plain": (1, 4), "SAM": (1, 2)}  # twice the epochs
    assert all(0 < value < 1 for [run] in results.values() for value in run)
    assert {path.name for path in tmp_path.iterdir()} == {"accuracy.png", "checkpoints"}


def test_gradient_surgery_example_leaves_what_it_promises(tmp_path):
    results = load(EXAMPLES / "gradient_surgery.py").main(["--smoke", "--out", str(tmp_path)])
    assert list(results) == ["sum", "surgery"]
    for [history] in results.values():
        assert 0 <= history["conflict"][-1] <= 1 and 0 < history["val_left_accuracy"][-1] < 1
    names = {"inputs.png", "accuracy.png", "checkpoints"}
    assert {path.name for path in tmp_path.iterdir()} == names
