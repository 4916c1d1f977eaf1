"""Moving averages of a network's weights, which are better than the last step's weights."""

import tensorflow as tf

__all__ = ["follow", "frozen_copy"]


def frozen_copy(network, suffix="ema"):
    """A copy of a built network with the same weights, which no optimizer trains.

    Args:
        network: `keras.Model`.
        suffix: what its name has more.

    Returns:
        `keras.Model`.
    """
    config = network.get_config()
    copy = type(network).from_config({**config, "name": f"{network.name}_{suffix}"})
    if not copy.built:
        copy.build_from_config(network.get_build_config())
    copy.set_weights(network.get_weights())
    copy.trainable = False
    return copy


def follow(average, network, decay, step):
    """Moves an average: w <- w - (1 - decay) (w - w'), with a shorter memory at the start.

    The decay at step t is at most (1 + t) / (10 + t), as in TensorFlow's moving averages, so that
    the first weights, which know nothing, are soon forgotten. Counters are copied.

    Yazici et al. 2018 (arXiv:1806.04498), section 3; Tarvainen and Valpola 2017
    (arXiv:1703.01780), equation 1.

    Args:
        average: the `frozen_copy` of a network.
        network: `keras.Model`, whose weights w' are averaged, moving statistics included.
        decay: in `[0, 1)`; 0 keeps the last weights.
        step: int or float scalar t, the number of steps done.
    """
    t = tf.cast(step, tf.float32)
    rate = 1 - tf.minimum(decay, (1 + t) / (10 + t))
    for mean, weight in zip(average.weights, network.weights):
        if tf.as_dtype(weight.dtype).is_floating:
            mean.value.assign_sub(tf.cast(rate, weight.dtype) * (mean - weight))
        else:  # a counter
            mean.assign(weight)
