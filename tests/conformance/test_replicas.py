"""Every template trains on two replicas, and without noise they equal one device."""

import keras
import numpy as np
import tensorflow as tf

from customstep import noise
from tests.descriptors import fit, functional_classifier, state


def train_on_two(descriptor, two_replicas, **arguments):
    with two_replicas.scope():
        model = descriptor.make()
    return model, fit(model, descriptor, epochs=1, **arguments)


def test_two_replicas_train_in_step_and_again_alike(descriptor, two_replicas, tmp_path):
    x, y, _ = descriptor.batch
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


def test_two_replicas_match_one(two_replicas):
    """A model without noise or batch norm, with sample weights and a short last batch."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 6)).astype("float32")
    y = rng.integers(0, 3, 20)
    weights = rng.uniform(0.5, 2, 20).astype("float32")

    def train():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        hidden = keras.layers.Dense(8, "relu", kernel_regularizer="l2")(inputs)
        model = type(functional_classifier())(
            inputs=inputs, outputs=keras.layers.Dense(3)(hidden)
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
        history = model.fit(
            x, y, sample_weight=weights, batch_size=8, epochs=2, shuffle=False, verbose=0
        )
        return model, history.history

    one, history_of_one = train()
    with two_replicas.scope():
        two, history_of_two = train()
    for a, b in zip(one.get_weights(), two.get_weights()):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for name, values in history_of_one.items():
        np.testing.assert_allclose(history_of_two[name], values, rtol=1e-5)


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
