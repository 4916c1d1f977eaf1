"""Layers: normalization as Keras does it, and how much a batch differs."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from customstep.layers import FusedBatchNormalization, MinibatchDeviation

RNG = np.random.default_rng(0)


def trained(layer, x, training=True):
    """Outputs, the gradients of the sum of their cubes, and the weights after the call."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = layer(x, training=training)
        loss = tf.reduce_sum(tf.cast(outputs, tf.float32) ** 3)
    gradients = tape.gradient(loss, [x, *(w.value for w in layer.trainable_variables)])
    return [outputs, *gradients, *layer.weights]


def pair(x, **arguments):
    classes = keras.layers.BatchNormalization, FusedBatchNormalization
    layers = [cls(**arguments) for cls in classes]
    for layer in layers:
        layer.build(x.shape)
        values = np.random.default_rng(1).uniform(0.5, 2, (len(layer.weights), x.shape[-1]))
        layer.set_weights(list(values))
    return layers


@pytest.mark.parametrize("shape", [(16, 5), (6, 4, 3, 5)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_fused_normalization_is_that_of_keras(shape, training, dtype):
    """Outputs, gradients, weights and moving statistics, which Keras takes as biased ones."""
    policy = keras.DTypePolicy(dtype)
    x = tf.cast(RNG.normal(2, 3, shape), policy.compute_dtype)
    keras_layer, fused = pair(x, dtype=policy, momentum=0.7)
    tolerance = 2e-5 if dtype == "float32" else 0.02
    found, expected = trained(fused, x, training), trained(keras_layer, x, training)
    for one, other in zip(found, expected, strict=True):
        one, other = (np.array(tf.cast(value, tf.float32)) for value in (one, other))
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * abs(other).max())
    assert found[0].dtype == policy.compute_dtype


@pytest.mark.parametrize(
    "arguments", [{"axis": 1}, {"scale": False}, {"center": False}, {"synchronized": True}]
)
def test_what_cannot_be_fused_runs_as_in_keras(arguments):
    x = tf.constant(RNG.normal(size=(6, 4, 3, 4)), tf.float32)
    keras_layer, fused = pair(x, **arguments)
    for one, other in zip(trained(fused, x), trained(keras_layer, x), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_frozen_fused_normalization_keeps_its_statistics():
    x = tf.constant(RNG.normal(size=(16, 5)), tf.float32)
    _, fused = pair(x)
    fused.trainable = False
    before = fused.get_weights()
    np.testing.assert_array_equal(fused(x, training=True), fused(x, training=False))
    np.testing.assert_array_equal(fused.get_weights(), before)


def test_deviation_by_hand():
    """Two groups: one of equal examples, one of which two features deviate by 1 and 3."""
    x = tf.constant([[5, 5], [5, 5], [1, 0], [3, 6]], tf.float32)
    found = MinibatchDeviation(group_size=2)(x)
    np.testing.assert_allclose(found, [[1e-4], [1e-4], [2], [2]], rtol=1e-6)


@pytest.mark.parametrize("n", [1, 3, 5, 16])
def test_groups_are_as_equal_as_the_batch_allows(n):
    x = tf.constant(RNG.normal(size=(n, 3, 2)), tf.float32)
    found = MinibatchDeviation(group_size=4)(x).numpy()
    assert found.shape == (n, 1)
    sizes = np.unique(found, return_counts=True)[1]
    assert len(sizes) == max(n // 4, 1) and sizes.max() - sizes.min() <= 1


def test_images_of_any_size_have_a_deviation():
    inputs = keras.Input((None, None, 2))
    model = keras.Model(inputs, MinibatchDeviation()(inputs))
    x = RNG.normal(size=(5, 3, 4, 2))
    np.testing.assert_array_equal(model(x), MinibatchDeviation()(x))


def test_an_empty_batch_spoils_visibly_or_nothing():
    """NaN statistics are those that a step on replicas, one of them without examples, puts back."""
    _, fused = pair(tf.ones((4, 5)))
    fused(tf.zeros((0, 5)), training=True)
    for statistic in (fused.moving_mean, fused.moving_variance):
        assert np.isnan(statistic.numpy()).all()
    assert MinibatchDeviation()(tf.zeros((0, 5))).shape == (0, 1)


@pytest.mark.parametrize("layer", [FusedBatchNormalization(), MinibatchDeviation(4)])
def test_layers_under_xla(layer):
    x = tf.constant(RNG.normal(size=(9, 4, 4, 3)), tf.float32)
    layer.build(x.shape)
    compiled = tf.function(lambda x: layer(x, training=True), jit_compile=True)
    np.testing.assert_allclose(compiled(x), layer(x, training=True), rtol=1e-4, atol=1e-5)


def test_float64_is_normalized_as_in_keras():
    x = tf.constant(RNG.normal(size=(6, 4)))
    keras_layer, fused = pair(x, dtype="float64")
    for one, other in zip(trained(fused, x), trained(keras_layer, x), strict=True):
        np.testing.assert_array_equal(one, other)


def test_equal_examples_have_a_finite_gradient():
    x = tf.ones((4, 3))
    with tf.GradientTape() as tape:
        tape.watch(x)
        deviation = MinibatchDeviation()(x)
    assert np.isfinite(tape.gradient(deviation, x)).all()


def test_layers_are_saved(tmp_path):
    x = keras.Input((4, 4, 3))
    flat = keras.layers.Flatten()(FusedBatchNormalization(momentum=0.7)(x))
    model = keras.Model(x, keras.layers.Concatenate()([flat, MinibatchDeviation(3)(flat)]))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    data = RNG.normal(size=(6, 4, 4, 3))
    np.testing.assert_array_equal(loaded(data, training=True), model(data, training=True))


@pytest.mark.parametrize("size", [1, 0, 2.5])
def test_a_group_of_one_is_refused(size):
    with pytest.raises((ValueError, TypeError), match="group_size"):
        MinibatchDeviation(size)
