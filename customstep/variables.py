"""The values of variables at one moment of a step, to go back to."""

import tensorflow as tf

__all__ = ["restore", "snapshot"]


def snapshot(variables):
    """The variables' values as they are now: list of `(keras.Variable, tensor)`."""
    return [(variable, tf.identity(variable.value)) for variable in variables]


def restore(values, masks):
    """Puts values back where a mask is True.

    Args:
        values: what `snapshot` returned.
        masks: for each variable a bool tensor that broadcasts to its shape.
    """
    for (variable, value), mask in zip(values, masks):
        variable.assign(tf.where(mask, value, variable.value))
