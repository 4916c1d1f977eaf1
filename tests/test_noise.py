"""Noise that is the same from the same seed, and different from every other one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from customstep import noise

COUNT = 200_000
SIGMAS = 5  # a bound that good noise breaks once in two million seeds

both = pytest.mark.parametrize("draw", [noise.normal, noise.uniform], ids=["normal", "uniform"])


def seed(key, index=0):
    return tf.constant([key, index], tf.int64)


def sample(draw, *where):
    return draw((COUNT,), seed(*where)).numpy().astype(np.float64)


# Reproducible


@both
def test_same_seed_gives_same_numbers(draw):
    first, second = draw((3, 4), seed(7, 2)), draw((3, 4), seed(7, 2))
    assert (first.dtype, first.shape) == (tf.float32, (3, 4))
    np.testing.assert_array_equal(first, second)


@both
def test_numbers_do_not_depend_on_the_global_seed(draw):
    first = draw((9,), seed(7))
    keras.utils.set_random_seed(123)
    np.testing.assert_array_equal(draw((9,), seed(7)), first)


@both
@pytest.mark.parametrize(
    "other",
    [(8, 0), (7, 1), (7, 2), (-7, 0), (0, 7), (7 + 2**32, 0), (7, 2**32)],
    ids=str,
)
def test_other_key_or_draw_gives_unrelated_numbers(draw, other):
    # The last two differ in the high halves of the words only.
    a, b = sample(draw, 7, 0), sample(draw, *other)
    assert (a != b).mean() > 0.99
    assert abs(np.corrcoef(a, b)[0, 1]) < SIGMAS / COUNT**0.5


def test_next_draw_is_not_the_same_stream_shifted():
    stream = noise.uniform((COUNT,), seed(7, 0)).numpy()
    following = noise.uniform((4,), seed(7, 1)).numpy()
    windows = np.lib.stride_tricks.sliding_window_view(stream, 4)
    assert not (windows == following).all(axis=1).any()


@both
def test_fewer_numbers_are_the_start_of_more(draw):
    many = draw((4, 3), seed(7)).numpy()
    # The words are the same; vectorized logarithms and roots may round them differently.
    np.testing.assert_allclose(draw((2, 3), seed(7)), many[:2], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(draw((5,), seed(7)), many.ravel()[:5], rtol=1e-6, atol=1e-6)


@both
def test_shape_may_be_a_tensor_and_seed_a_list(draw):
    np.testing.assert_array_equal(draw(tf.constant([2, 3]), [7, 1]), draw((2, 3), seed(7, 1)))


@both
def test_empty_shapes_work(draw):
    assert draw((0, 3), seed(7)).shape == (0, 3)
    assert draw((), seed(7)).shape == ()


@both
def test_function_gives_the_eager_numbers(draw):
    function = tf.function(lambda shape, s: draw(shape, s))
    for shape in ((5,), (2, 3, 4), (1001,)):
        np.testing.assert_array_equal(
            function(tf.constant(shape), seed(7, 1)), draw(shape, seed(7, 1))
        )


@both
def test_xla_draws_reproducible_noise_of_the_same_kind(draw):
    function = tf.function(lambda s: draw((COUNT,), s), jit_compile=True)
    first, other = function(seed(7, 1)).numpy(), draw((COUNT,), seed(7, 1)).numpy()
    np.testing.assert_array_equal(first, function(seed(7, 1)))
    assert abs(first.mean() - other.mean()) < 2 * SIGMAS / COUNT**0.5
    assert abs(first.std() - other.std()) < 2 * SIGMAS / COUNT**0.5


# Distributions


@pytest.mark.parametrize("where", [(0, 0), (7, 0), (7, 1), (2**31, 10**6)], ids=str)
def test_normal_noise_has_the_moments_of_a_standard_normal(where):
    x = sample(noise.normal, *where)
    error = SIGMAS / COUNT**0.5
    assert abs(x.mean()) < error
    assert abs(x.var() - 1) < error * 2**0.5
    z = (x - x.mean()) / x.std()
    assert abs((z**3).mean()) < error * 6**0.5
    assert abs((z**4).mean() - 3) < error * 24**0.5


@pytest.mark.parametrize("where", [(0, 0), (7, 0), (7, 1), (2**31, 10**6)], ids=str)
def test_uniform_noise_fills_0_to_1_evenly(where):
    x = np.sort(sample(noise.uniform, *where))
    assert 0 <= x[0] < 1e-3 and 1 - 1e-3 < x[-1] < 1
    error = SIGMAS / COUNT**0.5
    assert abs(x.mean() - 1 / 2) < error * (1 / 12) ** 0.5
    assert abs(x.var() - 1 / 12) < error * (1 / 180) ** 0.5  # 1/80 - (1/12)^2 = 1/180
    steps = np.arange(COUNT + 1) / COUNT
    statistic = max(np.max(steps[1:] - x), np.max(x - steps[:-1]))
    assert statistic < 1.95 / COUNT**0.5  # Kolmogorov-Smirnov, 0.1 % level


@both
@pytest.mark.parametrize("lag", [1, 2, 3, 4])
def test_neighbours_are_uncorrelated(draw, lag):
    x = sample(draw, 7, 0)
    assert abs(np.corrcoef(x[:-lag], x[lag:])[0, 1]) < SIGMAS / COUNT**0.5


@both
def test_first_numbers_of_successive_draws_are_uncorrelated(draw):
    x = np.stack([draw((2,), seed(7, index)).numpy() for index in range(500)])
    assert abs(np.corrcoef(x[:-1, 0], x[1:, 0])[0, 1]) < SIGMAS / 500**0.5


# Seeds


def test_draw_seed_advances_the_generator_by_one():
    generator = keras.random.SeedGenerator(3)
    drawn = [noise.draw_seed(generator) for _ in range(3)]
    assert {(one.dtype, one.shape) for one in drawn} == {(tf.int64, (2,))}
    assert [one.numpy().tolist() for one in drawn] == [[3, 0], [3, 1], [3, 2]]
    assert np.array(generator.state.value).tolist() == [3, 3]


@pytest.mark.parametrize("compiled", [{}, {"jit_compile": True}], ids=["graph", "xla"])
def test_draw_seed_advances_the_generator_at_every_call_of_a_function(compiled):
    generator = keras.random.SeedGenerator(3)
    function = tf.function(lambda: noise.draw_seed(generator), **compiled)
    assert [function().numpy().tolist() for _ in range(3)] == [[3, 0], [3, 1], [3, 2]]


def test_every_replica_draws_another_seed_and_keeps_the_same_state(two_replicas):
    with two_replicas.scope():
        generator = keras.random.SeedGenerator(3)
    function = tf.function(lambda: two_replicas.run(noise.draw_seed, (generator,)))
    for index in range(2):
        drawn = two_replicas.experimental_local_results(function())
        assert [one.numpy().tolist() for one in drawn] == [[3, index], [3 + 2**32, index]]
