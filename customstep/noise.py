"""Random tensors that can be drawn again: equal seeds give equal noise.

A seed is int64 `(2,)`: the key of the stream, and which of its draws this is. The generator is
Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", SC11), drawn by key and
counter, which costs the graph less than deriving both from a seed. XLA makes other floats of the
same random words than TensorFlow's own kernels do, so its noise differs.
"""

import math

import tensorflow as tf

from customstep import replicas

__all__ = ["draw_seed", "normal", "permutation", "split", "symmetric_beta", "uniform"]

_PHILOX = 1  # `tf.random.Algorithm.PHILOX`


def draw_seed(generator):
    """The next seed of a `keras.random.SeedGenerator`, another one on every replica.

    Args:
        generator: `keras.random.SeedGenerator`.

    Returns:
        int64 `(2,)`.
    """
    # The state is the same on all replicas; without their number so would be the noise.
    return generator.next() + tf.constant([2**32, 0], tf.int64) * replicas.index()


def split(seed, count):
    """Seeds for several draws, made of one: draw from them, and not from `seed` itself again.

    Args:
        seed: int64 `(2,)`.
        count: int, how many.

    Returns:
        List of `count` seeds, int64 `(2,)`.
    """
    key, counter = _key_and_counter(seed)
    words = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=(count, 2), key=key, counter=counter, alg=_PHILOX, dtype=tf.int64
    )
    return tf.unstack(words)


def normal(shape, seed):
    """Standard normal noise.

    Args:
        shape: of the result, ints or an int tensor.
        seed: int64 `(2,)`.

    Returns:
        float32 of that shape.
    """
    key, counter = _key_and_counter(seed)
    return tf.raw_ops.StatelessRandomNormalV2(shape=shape, key=key, counter=counter, alg=_PHILOX)


def uniform(shape, seed):
    """Uniform noise in `[0, 1)`; arguments as for `normal`."""
    key, counter = _key_and_counter(seed)
    return tf.raw_ops.StatelessRandomUniformV2(shape=shape, key=key, counter=counter, alg=_PHILOX)


def symmetric_beta(alpha, shape, seed):
    """Noise in `[0, 1]` of the distribution Beta(alpha, alpha): near 0 and 1 for a small alpha.

    No draw is rejected: (1 + T / sqrt(n + T^2)) / 2 of Student's T with n = 2 alpha degrees of
    freedom is Beta(alpha, alpha), and T = sqrt(n (U^(-2/n) - 1)) cos(2 pi V) of uniform U and V
    (Bailey 1994, "Polar generation of random variates with the t-distribution", Mathematics of
    Computation 62).

    Args:
        alpha: float above 0; 1 is uniform noise.
        shape: of the result, ints or an int tensor.
        seed: int64 `(2,)`.

    Returns:
        float32 of that shape.
    """
    u, v = tf.unstack(uniform(tf.concat([shape, [2]], axis=0), seed), axis=-1)
    log_q = tf.math.log(u) / alpha  # q = U^(1 / alpha), whose inverse would overflow
    q, p = tf.exp(log_q), -tf.math.expm1(log_q)
    c = tf.cos(2 * math.pi * v)
    return (1 + tf.clip_by_value(c * tf.sqrt(p / (q + p * c**2)), -1.0, 1.0)) / 2


def permutation(n, seed):
    """The numbers from 0 to n - 1 in random order, int32 `(n,)`; arguments as for `normal`."""
    return tf.argsort(uniform((n,), seed))


def _key_and_counter(seed):
    seed = tf.convert_to_tensor(seed, tf.int64)
    counter = seed * tf.constant([0, 1], tf.int64)  # the low word counts within the draw
    return tf.bitcast(seed[:1], tf.uint64), tf.bitcast(counter, tf.uint64)
