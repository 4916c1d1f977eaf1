"""The values of variables within a step: to go back to them, or to leave them alone."""

import keras
import tensorflow as tf

__all__ = ["restore", "snapshot", "without_effects"]


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


def without_effects(variables, values=()):
    """A scope in which no variable changes.

    Unlike a bare `keras.StatelessScope` it works inside another one, whose values it takes over,
    and for variables that have a regularizer.

    Args:
        variables: all that are used within.
        values: pairs of a variable and the tensor that is its value within.

    Returns:
        `keras.StatelessScope`.
    """
    current = ((variable, variable.value) for variable in variables)
    return keras.StatelessScope([*current, *values], collect_losses=True)
