"""Layers that image networks want and Keras has not, or has slower."""

import keras
import tensorflow as tf

from customstep.checks import check_integer, check_number

__all__ = ["FusedBatchNormalization", "GradientReversal", "MinibatchDeviation"]


@keras.saving.register_keras_serializable("customstep")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization (Ioffe and Szegedy 2015, arXiv:1502.03167) as one TensorFlow operation.

    Arguments, weights and results are those of `keras.layers.BatchNormalization`, which it takes
    the place of in a network, saved weights included; only rounding differs. Keras 3 makes each
    normalization of a dozen operations and their gradients, which small networks on a CPU feel.

    It is fused over the last axis of `(batch, features)` and `(batch, height, width, channels)`,
    with scale and centre; all else, such as `synchronized=True`, a mask or float64, runs as in
    Keras.
    """

    def call(self, inputs, training=None, mask=None):
        fits = len(inputs.shape) in (2, 4) and self.axis in (-1, len(inputs.shape) - 1)
        is_plain = self.scale and self.center and not (self.synchronized or self.renorm)
        if not fits or not is_plain or mask is not None or self.compute_dtype == "float64":
            return super().call(inputs, training=training, mask=mask)
        training = bool(training) and self.trainable
        moving = (self.moving_mean, self.moving_variance)
        gamma, beta, *known = (
            tf.cast(variable.value, tf.float32) for variable in (self.gamma, self.beta, *moving)
        )
        mean, variance = ([], []) if training else known
        images = inputs if len(inputs.shape) == 4 else inputs[:, None, None, :]
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=tf.cast(images, self.compute_dtype),
            scale=gamma,
            offset=beta,
            mean=mean,
            variance=variance,
            epsilon=self.epsilon,
            is_training=training,
        )
        if training:
            n = tf.cast(tf.size(inputs[..., 0]), tf.float32)
            variance *= (n - 1) / n  # of the batch, as Keras has it; the operation's is unbiased
            for average, value in zip(moving, (mean, variance)):
                value = tf.cast(value, average.dtype)
                average.assign(average * self.momentum + value * (1.0 - self.momentum))
        return outputs if len(inputs.shape) == 4 else outputs[:, 0, 0, :]


@keras.saving.register_keras_serializable("customstep")
class GradientReversal(keras.layers.Layer):
    """Its input as it is, and on the way back -w times the gradient.

    What lies behind it learns its task, what lies before it learns to make that impossible: with
    the task of telling two domains apart, features that are the same in both. Ganin et al. 2016
    (arXiv:1505.07818), section 4.2.

    Args:
        weight: w, at least 0.
        **kwargs: as for any layer.

    Raises:
        ValueError: the weight is out of its range.

    Example:

        domain = keras.layers.Dense(1)(GradientReversal(0.3)(features))
    """

    def __init__(self, weight=1.0, **kwargs):
        super().__init__(**kwargs)
        check_number("weight", weight, "[0, inf)")
        self.weight = weight

    def call(self, inputs):
        fixed = tf.stop_gradient(inputs)
        return fixed - self.weight * (inputs - fixed)  # of which the last part is 0

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "weight": self.weight}


@keras.saving.register_keras_serializable("customstep")
class MinibatchDeviation(keras.layers.Layer):
    """How much the examples of a batch differ from one another: one number each.

    The standard deviation of every feature over a group of examples, averaged over the features;
    all examples of the group are given the same. A discriminator that sees it beside its features
    notices when a generator makes all images alike. Karras et al. 2018 (arXiv:1710.10196), section
    3, where the group is the batch.

    Groups are neighbours in the batch, as equal in size as the batch allows; on several replicas,
    in the part of the batch that each of them sees.

    Args:
        group_size: about how many examples are a group, at least 2.
        **kwargs: as for any layer.

    Input shape: `(batch, ...)`. Output shape: `(batch, 1)`.

    Raises:
        ValueError: `group_size` is too small.

    Example:

        x = keras.layers.Flatten()(x)
        x = keras.layers.Concatenate()([x, MinibatchDeviation()(x)])
    """

    def __init__(self, group_size=16, **kwargs):
        super().__init__(**kwargs)
        check_integer("group_size", group_size, 2)
        self.group_size = group_size

    def call(self, inputs):
        shape = tf.shape(inputs)
        n = shape[0]
        x = tf.reshape(tf.cast(inputs, tf.float32), (n, tf.reduce_prod(shape[1:])))
        groups = tf.maximum(n // self.group_size, 1)
        group = tf.range(n) * groups // n  # which one each example belongs to

        def mean(values):
            return tf.math.unsorted_segment_mean(values, group, groups)

        squares = (x - tf.gather(mean(x), group)) ** 2
        deviation = tf.reduce_mean(tf.sqrt(mean(squares) + 1e-8), axis=1, keepdims=True)
        return tf.cast(tf.gather(deviation, group), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], 1)

    def get_config(self):
        return {**super().get_config(), "group_size": self.group_size}
