"""What becomes of an update whose objective, gradients or statistics are NaN or infinite."""

import itertools
import math

import keras
import tensorflow as tf

from customstep import replicas, variables

__all__ = ["Stop", "all_finite", "check_argument", "nan_unless", "outcomes"]


def check_argument(nonfinite, *, jit_compile="auto"):
    """Raises a `ValueError` where `compile` cannot do what its `nonfinite` asks for.

    Args:
        nonfinite: as for `StepModel.compile`.
        jit_compile: as for `keras.Model.compile`.
    """
    if nonfinite not in (None, "skip", "stop"):
        raise ValueError(
            "`nonfinite` is not a choice that there is. Expected None, 'skip' or 'stop'; received "
            f"{nonfinite!r}. Pass \"skip\" to pass over updates that are not finite, \"stop\" to "
            "end training at the first one, or leave it out."
        )
    if nonfinite == "stop" and jit_compile is True:
        raise ValueError(
            "A step that XLA has compiled cannot stop. Expected `jit_compile=False` beside "
            "`nonfinite='stop'`; received True. Leave out `jit_compile`, or pass "
            '`nonfinite="skip"`.'
        )


def all_finite(tensors):
    """Whether no value of any tensor, dense or sparse or None, is infinite or not a number."""
    values = [getattr(tensor, "values", tensor) for tensor in tensors if tensor is not None]
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(value)) for value in values])


def outcomes(before):
    """What has become of statistics: their values now, with 0 where they were not finite before.

    The variance of inputs of 1e30 is infinite, though every term and every gradient is finite.

    Args:
        before: what `variables.snapshot` returned.

    Returns:
        List of float tensors, one for each variable, 0 for one of integers.
    """
    return [
        tf.where(tf.math.is_finite(old), variable.value, tf.zeros_like(old))
        if old.dtype.is_floating
        else tf.constant(0.0)
        for variable, old in before
    ]


def nan_unless(finite, objective):
    """An objective that all who look at it pass over, on every replica, unless it is `finite`."""
    dtype = keras.config.floatx()
    terms = {k: tf.where(finite, tf.cast(v, dtype), math.nan) for k, v in objective.terms.items()}
    return objective._replace(terms=terms)


class Stop:
    """Ends training from within a step, with an error that says what was not finite.

    Of an error in a graph TensorFlow keeps only the text. This one is kept here, and raised as it
    is by the function that `watching` returns.

    Example:

        stop = Stop()
        train = stop.watching(make_function(step))  # where `step` calls `stop.unless_finite`
    """

    def __init__(self):
        self._error = None

    def watching(self, function):
        """A function like `function` that raises the error of `unless_finite` as it was meant."""

        def watched(*args):
            self._error = None
            try:
                return function(*args)
            except tf.errors.OpError:
                if self._error is None:
                    raise
                raise self._error from None

        return watched

    def unless_finite(self, model, before, update, batch, objective, gradients):
        """Goes back and raises where a descent, not yet applied, is not finite on some replica.

        What follows in the step waits for it, and what came before in the step is complete, also
        in a graph, where neither goes without saying.

        Args:
            model: `StepModel`.
            before: the values to go back to, from `variables.snapshot`.
            update: `Update`.
            batch: `Batch`.
            objective: `Objective` of the batch.
            gradients: its gradients; those that float16's loss scale lets overflow do not count.

        Raises:
            FloatingPointError: names the update, what was not finite in it, and the step.
        """
        names, tensors = _looked_at(model, before, update, objective, gradients)
        step = model.step_state.variables["step"]
        changed = [variable for variable, _ in before]
        others = [*model.optimizer.variables, *model.step_state.variables.values()]

        def stop(values, *nests):
            variables.restore(zip(changed, values), itertools.repeat(True))
            # To read all variables is to come after all that writes them, on every replica.
            with tf.control_dependencies([tf.identity(v.value) for v in (*changed, *others)]):
                counts = tf.stack([_count(nest) for nest in nests])
            [counts] = replicas.total([counts])
            tf.numpy_function(fail, [counts, step.value], [])

        def fail(counts, step):
            found = zip([*names, *_DATA], counts, strict=True)
            kinds = {name: _kind(*count) for name, count in found if count.any()}
            self._error = FloatingPointError(_message(update.name, int(step), kinds))
            raise self._error

        finite = replicas.every(all_finite(tensors))
        values = [value for _, value in before]
        replicas.cond(finite, lambda *_: None, stop, values, *tensors, *batch)


def _looked_at(model, before, update, objective, gradients):
    """Names of all that has to be finite, in the order of blame, and the tensors: two lists."""
    names = [*(f"its term '{name}'" for name in objective.terms), "the sum of its terms"]
    terms = [tf.cast(term, keras.config.floatx()) for term in objective.terms.values()]
    tensors = [*terms, objective.total]
    if not isinstance(model.optimizers[update.name], keras.optimizers.LossScaleOptimizer):
        names += [f"the gradient of '{variable.path}'" for variable in update.variables]
        tensors += gradients
    untrained = {id(variable) for variable in model.non_trainable_weights}
    statistics = [(variable, old) for variable, old in before if id(variable) in untrained]
    names += [f"the statistic '{variable.path}'" for variable, _ in statistics]
    return names, [*tensors, *outcomes(statistics)]


_DATA = ("inputs", "targets", "sample weights", "results of earlier updates")  # the parts of a `Batch`


def _count(nest):
    """How many values of a nest of tensors are NaN, and how many infinite: int32 `(2,)`."""
    tensors = [getattr(tensor, "values", tensor) for tensor in keras.tree.flatten(nest)]
    tensors = [tf.convert_to_tensor(tensor) for tensor in tensors if tensor is not None]
    tensors = [tensor for tensor in tensors if tensor.dtype.is_floating]
    counts = [
        [tf.math.count_nonzero(is_spoiled(tensor), dtype=tf.int32) for tensor in tensors]
        for is_spoiled in (tf.math.is_nan, tf.math.is_inf)
    ]
    return tf.stack([tf.add_n([tf.constant(0), *each]) for each in counts])


def _kind(nans, infinities):
    return " and ".join([*["NaN"] * bool(nans), *["infinite"] * bool(infinities)])


def _message(update, step, kinds):
    """The error for an update: `kinds` is a dict of what was not finite to how, in order."""
    culprit = next(name for name in kinds if name not in _DATA)
    data = " and ".join(f"{kinds[name]} values in its {name}" for name in _DATA if name in kinds)
    batch = f"; the batch has {data}" if data else ""
    return (
        f"The update '{update}' is not finite in step {step}: {culprit} is {kinds[culprit]}"
        f"{batch}. Expected finite terms, gradients and statistics; received one that is "
        f"{kinds[culprit]}. Look at the data of that batch, lower the learning rate, or pass "
        '`compile(nonfinite="skip")`, which passes over such updates and counts them.'
    )
