"""Every template trains on two replicas and equals one device there, last batches included."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.optimizers import SGD, Adam

from customstep import StepModel, noise, replicas
from customstep.conditions import Above
from customstep.schedules import ReduceOnPlateau
from tests.conformance.sampling import some
from tests.descriptors import CLASSES, FEATURES, fit, functional_classifier, state

# Rows of a batch of 8 such that two halves of it hold what two replicas hold in theirs, also where
# an update cuts its batch in two.
ORDER = [0, 1, 4, 5, 2, 3, 6, 7]


def train_on_two(descriptor, two_replicas, **arguments):
    with two_replicas.scope():
        model = descriptor.make()
    return model, fit(model, descriptor, epochs=1, **arguments)


@some(1)
def test_two_replicas_train_in_step_and_again_alike(descriptor, two_replicas, tmp_path):
    x, y, *_ = descriptor.batch
    model, history = train_on_two(descriptor, two_replicas, validation_data=(x, y))
    assert all(np.isfinite(values).all() for values in history.values())
    for variable in model.trainable_variables:
        first, second = two_replicas.experimental_local_results(variable.value)
        np.testing.assert_array_equal(first.numpy(), second.numpy())
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    for a, b in zip(state(model), state(restored)):
        np.testing.assert_array_equal(a, b)
    again, history_again = train_on_two(descriptor, two_replicas)
    assert history_again.items() <= history.items()
    for a, b in zip(state(model), state(again)):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def shared_noise(monkeypatch):
    """Noise that is the same on all replicas, and repeats from the third example on."""

    def repeating(draw):
        def patched(shape, seed):
            sizes = tf.unstack(tf.convert_to_tensor(shape))
            values = draw([2] * len(sizes), seed)
            for axis, size in enumerate(sizes):
                values = tf.gather(values, tf.range(size) % 2, axis=axis)
            return values

        return patched

    def swap_neighbours(n, seed):
        return tf.bitwise.bitwise_xor(tf.range(n), 1)

    monkeypatch.setattr(noise, "draw_seed", lambda generator: generator.next())
    monkeypatch.setattr(noise, "normal", repeating(noise.normal))
    monkeypatch.setattr(noise, "uniform", repeating(noise.uniform))
    monkeypatch.setattr(noise, "permutation", swap_neighbours)


def without_local_effects(model):
    """Batch norm over all replicas and no dropout, whose masks depend on the batch's size."""
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0
    return model


def test_two_replicas_equal_one_device(descriptor, two_replicas, shared_noise):
    one = without_local_effects(descriptor.make())
    with two_replicas.scope():
        two = without_local_effects(descriptor.make())
    history_of_two = fit(two, descriptor)
    order = np.concatenate([np.array(ORDER) + start for start in (0, 8, 16)])
    reordered = keras.tree.map_structure(
        lambda array: None if array is None else array[order], descriptor.batch, none_is_leaf=True
    )
    history_of_one = fit(one, descriptor._replace(batch=reordered))
    for name, values in history_of_one.items():
        np.testing.assert_allclose(history_of_two[name], values, rtol=1e-4, err_msg=name)
    for a, b in zip(state(one), state(two)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def classifier(optimizer=None, **compile_arguments):
    """Without noise and batch norm; its metrics are exact on any number of replicas."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(8, "relu", kernel_regularizer="l2")(inputs)
    model = StepModel(inputs=inputs, outputs=keras.layers.Dense(3)(hidden))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or SGD(0.1), loss, metrics=["accuracy"], **compile_arguments)
    return model


def on_one_and_two(two_replicas, make, *data, **arguments):
    """The histories and states of a model that trains on one device, and on two replicas."""
    arguments = {**dict(batch_size=8, epochs=2, shuffle=False, verbose=0), **arguments}
    one = make()
    with two_replicas.scope():
        two = make()
    histories = [model.fit(*data, **arguments).history for model in (one, two)]
    return histories, (state(one), state(two))


# Of the last batch the replicas get 2 and 2, 2 and 1, 1 and 0.
@pytest.mark.parametrize("examples", [20, 19, 17])
def test_short_last_batches_are_exact_on_replicas(examples, two_replicas, rng):
    """With sample weights; where Keras itself descends on a half or two thirds of the gradient."""
    weights = rng.uniform(0.5, 2, examples).astype("float32")
    data = FEATURES[:examples], CLASSES[:examples]
    histories, states = on_one_and_two(two_replicas, classifier, *data, sample_weight=weights)
    for name, values in histories[0].items():
        np.testing.assert_allclose(histories[1][name], values, rtol=1e-5)
    for a, b in zip(*states):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_batches_of_a_fixed_odd_size_are_exact_on_replicas(two_replicas):
    """The graph knows the size of the batch, though not of its parts: 4 and 3."""
    pairs = tf.data.Dataset.from_tensor_slices((FEATURES, CLASSES))
    data = pairs.batch(7, drop_remainder=True)
    histories, states = on_one_and_two(two_replicas, classifier, data, batch_size=None)
    for name, values in histories[0].items():
        np.testing.assert_allclose(histories[1][name], values, rtol=1e-5)
    for a, b in zip(*states):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("eagerly", [False, True])
def test_train_on_batch_trains_each_replica_on_the_whole_batch(eagerly, two_replicas):
    one = classifier(run_eagerly=eagerly)
    with two_replicas.scope():
        two = classifier(run_eagerly=eagerly)
    for model in (one, two):
        model.train_on_batch(FEATURES[:7], CLASSES[:7])
    for a, b in zip(state(one), state(two)):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_an_empty_replica_neither_stops_nor_blinds_an_update(two_replicas):
    """The guard takes no offence at it, and what remembers losses sees those of the batch."""

    def make():
        return classifier(
            when=Above("loss", 1.0),
            schedule_lr=ReduceOnPlateau(0.1, patience=1, min_delta=1.0),
            nonfinite="skip",
        )

    histories, states = on_one_and_two(two_replicas, make, FEATURES[:17], CLASSES[:17])
    assert histories[1]["nonfinite"] == [0, 0]
    assert histories[0]["learning_rate"][-1] < 0.1
    for name, values in histories[0].items():
        np.testing.assert_allclose(histories[1][name], values, rtol=1e-5)
    for a, b in zip(*states):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_an_empty_replica_spoils_no_batch_norm(two_replicas):
    """One example is on the first replica: the step is that of one device."""

    def make():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        x = keras.layers.BatchNormalization()(keras.layers.Dense(8)(inputs))
        model = StepModel(inputs=inputs, outputs=keras.layers.Dense(3)(x))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(SGD(0.1), loss)
        return model

    one = make()
    with two_replicas.scope():
        two = make()
    for model in (one, two):
        model.fit(FEATURES[:1], CLASSES[:1], batch_size=8, verbose=0)
    for a, b in zip(one.weights, two.weights):
        np.testing.assert_allclose(a, b, atol=1e-6)
        assert all(np.isfinite(part).all() for part in replicas.parts(b))


@pytest.mark.parametrize("limit", ["clipnorm", "global_clipnorm", "clipvalue"])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_gradients_are_clipped_after_the_reduction(limit, policy, two_replicas):
    keras.mixed_precision.set_global_policy(policy)
    histories, states = on_one_and_two(
        two_replicas, lambda: classifier(SGD(0.1, **{limit: 0.02})), FEATURES, CLASSES
    )
    tolerance = 1e-6 if policy == "float32" else 1e-4
    for a, b in zip(*states):
        np.testing.assert_allclose(a, b, atol=tolerance)


def test_every_replica_draws_noise_of_its_own(two_replicas):
    with two_replicas.scope():
        seeds = keras.random.SeedGenerator(1)

    @tf.function
    def draw():
        return two_replicas.run(lambda: noise.normal((4,), noise.draw_seed(seeds)))

    first, second = two_replicas.experimental_local_results(draw())
    assert not np.array_equal(first, second)
    # The first replica's is what one device would draw.
    alone = noise.normal((4,), noise.draw_seed(keras.random.SeedGenerator(1)))
    np.testing.assert_array_equal(first, alone)


def test_variables_are_made_from_what_preprocess_returns(two_replicas):
    """Cropped inputs and one-hot targets: the batch that comes in has other shapes."""

    class Cropping(type(functional_classifier())):
        def preprocess(self, batch, training):
            return batch._replace(x=batch.x[:, :6], y=tf.one_hot(batch.y, 3))

    with two_replicas.scope():
        inputs = keras.Input((6,))
        model = Cropping(inputs=inputs, outputs=keras.layers.Dense(3)(inputs))
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss, metrics=["accuracy"])
    history = model.fit(np.ones((8, 9), "float32"), np.arange(8) % 3, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_no_batch_of_a_generator_is_lost(two_replicas):
    """Keras makes variables from a first batch, and a generator gives each one only once."""
    batches = [(FEATURES[i : i + 8], CLASSES[i : i + 8]) for i in (0, 8, 16)]
    with two_replicas.scope():
        model = classifier()
    model.fit((batch for batch in batches), steps_per_epoch=3, shuffle=False, verbose=0)
    assert model.steps == 3


def test_predict_on_batch_returns_one_output_an_example(two_replicas):
    """Keras itself returns every output once for each replica."""
    with two_replicas.scope():
        model = classifier()
    outputs = model.predict_on_batch(FEATURES[:5])
    np.testing.assert_allclose(outputs, model.predict(FEATURES[:5], verbose=0), rtol=1e-6)


# -- What replicas cannot do is said at once ------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        (lambda: dict(jit_compile=True), "XLA cannot compile"),
        (lambda: dict(optimizer=SGD(gradient_accumulation_steps=2)), "accumulates gradients"),
        (
            lambda: dict(optimizer=SGD(use_ema=True, ema_overwrite_frequency=2)),
            "overwrites weights by their averages",
        ),
    ],
)
def test_compile_says_what_replicas_cannot_do(arguments, message, two_replicas):
    with two_replicas.scope(), pytest.raises(ValueError, match=message):
        classifier(**arguments())


def test_averaged_weights_train_on_replicas(two_replicas):
    make = lambda: classifier(Adam(0.01, use_ema=True, ema_momentum=0.5))  # noqa: E731
    _, states = on_one_and_two(two_replicas, make, FEATURES, CLASSES)
    for a, b in zip(*states):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_models_and_optimizers_are_made_under_the_strategy(two_replicas):
    outside = classifier()
    with two_replicas.scope():
        with pytest.raises(ValueError, match="not where the replicas look for them"):
            outside.fit(FEATURES, CLASSES, verbose=0)
        with pytest.raises(ValueError, match="not where the replicas look for them"):
            outside.evaluate(FEATURES, CLASSES, verbose=0)
        inside = classifier()
    with pytest.raises(ValueError, match="compiled outside of its strategy"):
        inside.compile("sgd", "mse")
    optimizer = SGD()
    with two_replicas.scope(), pytest.raises(ValueError, match="made outside of the model's"):
        classifier(optimizer)


