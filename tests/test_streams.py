"""The order of shuffled batches: a permutation for every seed and step, found again by them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from customstep import StepModel, streams
from tests.soak import SOAK, repeatable


# To trace a data set takes a while.
repeatable = settings(repeatable, max_examples=200 if SOAK else 10)


def orders(data, epochs=1):
    return [[int(index) for batch in data for index in batch] for _ in range(epochs)]


sizes = st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))
seeds = st.integers(-(2**63), 2**63 - 1)


@given(sizes, seeds, st.integers(0, 2**62))
@repeatable
def test_epoch_is_a_part_of_a_permutation_in_whole_batches(size, seed, step):
    count, batch_size = size
    data = streams.index_batches(count, batch_size, seed=seed)
    streams.follow(data, step)
    assert streams.is_known(data)
    batches = [batch.numpy() for batch in data]
    assert len(batches) == int(data.cardinality()) == count // batch_size
    assert {len(batch) for batch in batches} == {batch_size}
    indices = np.concatenate(batches)
    assert len(set(indices)) == len(indices)
    assert 0 <= indices.min() and indices.max() < count


@given(sizes, seeds, st.integers(0, 2**62))
@repeatable
def test_order_is_a_function_of_seed_and_step(size, seed, step):
    first, second = (streams.index_batches(*size, seed=seed) for _ in range(2))
    orders(second, epochs=2)  # whatever was drawn before
    for data in (first, second):
        streams.follow(data, step)
    assert orders(first) == orders(second)


@given(sizes, seeds)
@repeatable
def test_stored_order_has_every_index(size, seed):
    data = streams.index_batches(*size, shuffle=False, seed=seed)
    assert orders(data, epochs=2) == [list(range(size[0]))] * 2
    assert int(data.cardinality()) == len(list(data))


def test_epochs_seeds_and_steps_give_other_orders():
    def order(seed, step):
        data = streams.index_batches(50, 50, seed=seed)
        streams.follow(data, step)
        return tuple(orders(data)[0])

    assert len({order(seed, step) for seed in range(5) for step in (0, 1, 50)}) == 15
    assert len(set(map(tuple, orders(streams.index_batches(50, 50), epochs=20)))) == 20


def test_places_are_evenly_spread():
    """Each of 10 indices is as often in each of 10 places: 100 counts of a mean of 50."""
    data = streams.index_batches(10, 10)
    counts = np.zeros((10, 10))
    for order in data.repeat(500):
        counts[np.arange(10), order.numpy()] += 1
    chi_squared = ((counts - 50) ** 2 / 50).sum()
    assert 45 < chi_squared < 130  # 81 degrees of freedom, a standard deviation of 13


def test_stream_is_found_behind_what_is_made_of_it():
    first, second = streams.index_batches(12, 3), streams.index_batches(12, 3, seed=1)
    both = tf.data.Dataset.zip((first.map(lambda i: 2 * i), second.prefetch(1))).take(2)
    streams.follow(both, 7)
    assert streams.is_known(both)
    a = [tuple(map(tuple, np.array(pair))) for pair in both]
    orders(first)
    streams.follow(both, 7)
    assert [tuple(map(tuple, np.array(pair))) for pair in both] == a


@pytest.mark.parametrize(
    "data",
    [
        tf.data.Dataset.range(3),
        streams.index_batches(3, 1).cache(),
        streams.index_batches(3, 1).shuffle(3),
        np.zeros(3),
        None,
    ],
)
def test_order_that_is_not_known_is_told(data):
    streams.follow(data, 0)
    assert not streams.is_known(data)


def test_fit_tells_the_step_and_goes_on_with_new_orders():
    seen = []

    def train(model, epochs):
        data = streams.index_batches(8, 2, seed=5)
        data = data.map(lambda i: (tf.cast(i, tf.float32)[:, None], tf.zeros((2, 1))))
        data = data.map(
            lambda x, y: (tf.numpy_function(lambda x: seen.append(x) or x, [x], tf.float32), y)
        )
        data = data.map(lambda x, y: (tf.ensure_shape(x, (2, 1)), y))
        model.fit(data, epochs=epochs, verbose=0, shuffle=False)

    def model():
        inputs = keras.Input((1,))
        model = StepModel(inputs=inputs, outputs=layers.Dense(1)(inputs))
        model.compile("sgd", "mse")
        return model

    train(model(), 2)
    once, parts = list(map(np.ravel, seen)), model()
    seen.clear()
    train(parts, 1)
    train(parts, 1)  # another data set, the same model
    np.testing.assert_array_equal(once, list(map(np.ravel, seen)))
    assert not np.array_equal(once[:4], once[4:])


@pytest.mark.parametrize(
    "arguments", [(0, 1), (4, 0), (4, 5), (4, 1.5), ("4", 1), (4, 1, {"seed": 2**63})]
)
def test_bad_arguments_are_refused(arguments):
    *sizes, options = arguments if isinstance(arguments[-1], dict) else (*arguments, {})
    with pytest.raises(ValueError, match=r"is out of its range\. Expected .*; received"):
        streams.index_batches(*sizes, **options)
