"""Schedules and conditions that remember what a training step measured."""

import keras
import tensorflow as tf

from customstep import replicas
from customstep.checks import check_number
from customstep.saving import SavedDataclass

__all__ = ["BoundSchedule", "StatefulSchedule", "moving_mean"]


class StatefulSchedule(SavedDataclass):
    """Base of the schedules and conditions that depend on losses, not on the step alone.

    Derive a frozen dataclass from it and register it with Keras. The state is a dict of name to
    float32 scalar, held in variables of the model, in the graph, and saved with it. The object
    itself never changes, so several updates may share it: each has a state of its own.

    Example:

        @keras.saving.register_keras_serializable("mine")
        @dataclasses.dataclass(frozen=True)
        class RateOfLoss(StatefulSchedule):
            factor: float

            def initial_state(self):
                return {"loss": 1.0}

            def observe(self, state, values):
                return {"loss": values["loss"]}

            def __call__(self, step, state):
                return self.factor * state["loss"]
    """

    def initial_state(self):
        """The state before the first step: dict of name to number."""
        raise NotImplementedError

    def observe(self, state, values):
        """The state after a step.

        Args:
            state: dict of name to float32 scalar.
            values: dict of name to float32 scalar: the terms and logs of the update's objective
                and their total, `loss`, as means over all replicas.

        Returns:
            Dict like `state`. It is not kept where one of `values` is not finite.
        """
        raise NotImplementedError

    def __call__(self, step, state):
        """The value at a step.

        Args:
            step: float32 scalar.
            state: dict of name to float32 scalar.

        Returns:
            A float scalar for a learning rate, a bool scalar for a condition.
        """
        raise NotImplementedError


class BoundSchedule:
    """A schedule and the variables that hold its state, none where it has no state.

    Args:
        schedule: a callable of the step, or a `StatefulSchedule`.
        dtype: of its values, bool for a condition and float32 for any other.
    """

    def __init__(self, schedule, dtype=tf.float32):
        self._schedule = schedule
        self._dtype = dtype
        self._is_stateful = isinstance(schedule, StatefulSchedule)
        initial = schedule.initial_state() if self._is_stateful else {}
        self.variables = {
            name: keras.Variable(
                float(value), trainable=False, aggregation="only_first_replica", name=name
            )
            for name, value in initial.items()
        }

    def __call__(self, step):
        """The value at a step, a float32 scalar.

        Raises:
            TypeError: it is no scalar, or a truth where a number is expected, or the other way
                round.
        """
        state = (self._state(),) if self._is_stateful else ()
        returned = self._schedule(step, *state)
        try:
            value = tf.convert_to_tensor(returned)
        except (TypeError, ValueError):
            received = repr(returned)
        else:
            real = tf.bool if value.dtype == tf.bool else tf.float32
            numeric = value.dtype.is_floating or value.dtype.is_integer or value.dtype.is_bool
            if numeric and real == self._dtype and value.shape.rank in (0, None):
                return tf.cast(value, self._dtype)
            received = f"{value.dtype.name} of shape {value.shape}"
        kind = "condition" if self._dtype == tf.bool else "schedule"
        raise TypeError(
            f"A {kind} returns a value of the wrong kind. Expected a scalar, {self._dtype.name}; "
            f"received {received} from {self._schedule!r}. Pass it to `schedule_lr` if it is a "
            "rate, to `when` if it is a condition, such as `step % 5 == 0`."
        )

    def check(self, name, interval=None):
        """Calls the schedule at step 0, to find out now what the first step would.

        Args:
            name: of the schedule, for the error.
            interval: what its value has to be in, such as "[0, inf)", or None.

        Raises:
            TypeError: it returns a value of the wrong kind.
            ValueError: its value is not in the interval.
        """
        value = self(tf.constant(0.0))
        if interval is not None and tf.executing_eagerly():
            check_number(f"{name} at step 0", float(value), interval)

    def observe(self, objective, size):
        """Moves the state on by what one step measured.

        Args:
            objective: `Objective` of this replica's part of the batch.
            size: the number of examples in it.
        """
        if not self._is_stateful:
            return
        values = {**objective.logs, **objective.terms, "loss": objective.total}
        weight = replicas.weight(size)
        means = replicas.total([weight * tf.cast(v, tf.float32) for v in values.values()])
        finite = tf.reduce_all(tf.math.is_finite(means))
        state = self._state()
        new = self._schedule.observe(state, _Measured(zip(values, means)))
        for name, variable in self.variables.items():
            variable.assign(tf.where(finite, tf.cast(new[name], tf.float32), state[name]))

    def _state(self):
        return {name: tf.convert_to_tensor(v.value) for name, v in self.variables.items()}


def moving_mean(state, value, smoothing):
    """The exponential moving mean after one more value, without the usual bias at the start.

    Every value weighs `smoothing` times as much as the one after it, the first one too. This is
    the corrected mean of Kingma and Ba 2015 (arXiv:1412.6980, section 3), and for a `smoothing`
    of 0 the value itself.

    Args:
        state: dict of "mean" and "weight", float32 scalars, both 0 before the first value.
        value: float32 scalar.
        smoothing: in `[0, 1)`.

    Returns:
        Dict like `state`.
    """
    weight = smoothing * state["weight"] + 1
    return {"mean": state["mean"] + (value - state["mean"]) / weight, "weight": weight}


class _Measured(dict):
    """What an objective measured, by name."""

    def __missing__(self, name):
        raise ValueError(
            f"A schedule or condition looks at '{name}', which its update does not measure. "
            f"Expected one of {sorted(self)}; received '{name}'. Correct the name, or return the "
            "quantity in the `logs` of the update's `Objective`."
        )
