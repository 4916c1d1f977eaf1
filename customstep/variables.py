"""Variables within a step: how they are made, gone back to, or left alone."""

import concurrent.futures

import keras
import tensorflow as tf

from customstep import replicas

__all__ = ["made_outside_of_graph", "restore", "snapshot", "without_effects"]


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


def made_outside_of_graph(make, *arguments):
    """Calls what makes variables, so that a graph that is being traced does not notice.

    TensorFlow traces a function a second time if the first trace has made variables, as Keras's own
    step does of its metrics. Not even `tf.init_scope` hides them, but another thread does.

    Args:
        make: callable of `arguments` that makes variables and no operations.
    """
    if replicas.count() > 1:  # they belong to the replicas, whom the other thread does not know
        make(*arguments)
        return
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as other_thread:
        other_thread.submit(make, *arguments).result()
