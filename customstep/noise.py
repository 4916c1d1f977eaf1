"""Random tensors that can be drawn again: equal seeds give equal noise.

A seed is int64 `(2,)`: the key of the stream, and which of its draws this is. The generator is
Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", SC11), drawn by key and
counter, which costs the graph less than deriving both from a seed. XLA makes other floats of the
same random words than TensorFlow's own kernels do, so its noise differs.
"""

import tensorflow as tf

from customstep import replicas

__all__ = ["draw_seed", "normal", "uniform"]

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


def _key_and_counter(seed):
    seed = tf.convert_to_tensor(seed, tf.int64)
    counter = seed * tf.constant([0, 1], tf.int64)  # the low word counts within the draw
    return tf.bitcast(seed[:1], tf.uint64), tf.bitcast(counter, tf.uint64)
