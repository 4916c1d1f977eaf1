"""Conditions for `compile(when=...)`, and actions of a step that run where one holds.

A condition is a callable of the step, the number of training steps done as a float32 scalar, that
returns whether an update descends: any function will do, such as `lambda step: step >= 1000`. The
ones here are saved with the model. A condition of your own that has to remember what was measured
derives from `stateful.StatefulSchedule`.
"""

import dataclasses

import keras
import tensorflow as tf

from customstep import replicas
from customstep.checks import check_integer, check_number
from customstep.saving import SavedDataclass
from customstep.stateful import StatefulSchedule, moving_mean

__all__ = ["Above", "Below", "Every", "run_if"]


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class Every(SavedDataclass):
    """Holds in one of every `n` steps: where `step % n == offset`.

    For what need not happen each time, such as the generator's update in a GAN whose critic is to
    be ahead of it. Exact for the first 2 ** 24 steps, the whole numbers that float32 holds.

    Args:
        n: the length of the cycle, a whole number of steps.
        offset: the place in the cycle, from 0, the first step, to `n - 1`, the last.

    Raises:
        ValueError: an argument is out of its range.

    Example:

        gan.compile(optimizers, when={"generator": Every(5)})  # in steps 0, 5, 10, ...
    """

    n: int
    offset: int = 0

    def __post_init__(self):
        check_integer("n", self.n, 1)
        check_integer("offset", self.offset, 0, self.n - 1)

    def __call__(self, step):
        return tf.equal(tf.math.floormod(tf.cast(step, tf.float32), self.n), self.offset)


@dataclasses.dataclass(frozen=True)
class _Threshold(StatefulSchedule):
    monitor: str
    threshold: float
    smoothing: float = 0.9

    def __post_init__(self):
        check_number("threshold", self.threshold, "(-inf, inf)")
        check_number("smoothing", self.smoothing, "[0, 1)")

    def initial_state(self):
        return {"mean": 0.0, "weight": 0.0}

    def observe(self, state, values):
        return moving_mean(state, values[self.monitor], self.smoothing)


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class Above(_Threshold):
    """Holds while the moving mean of what an update measures is above a threshold.

    Put on a GAN's discriminator it is the brake that keeps it from winning for good: no update
    while its loss is low, and on again as soon as the generator has caught up. The objective is
    evaluated in every step, whether the update descends or not. In the first step, before
    anything is measured, the condition holds.

    Args:
        monitor: a term or a log of the update's objective, or "loss", their sum.
        threshold: in the units of what is monitored.
        smoothing: memory of the moving mean, in `[0, 1)`; a measurement counts `smoothing` times
            as much as the one after it. 0 takes the last one alone.

    Raises:
        ValueError: an argument is out of its range; in the first step, that the objective has
            nothing of the name `monitor`.

    Example:

        gan.compile(optimizers, when={"discriminator": Above("discriminator_loss", 0.6)})
    """

    def __call__(self, step, state):
        return tf.logical_or(state["weight"] == 0, state["mean"] > self.threshold)


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class Below(_Threshold):
    """Holds while the moving mean of what an update measures is below a threshold.

    The counterpart of `Above`, whose arguments it takes: an update that is to rest while its loss
    is too high to learn from.

    Example:

        gan.compile(optimizers, when={"generator": Below("generator_loss", 3.0)})
    """

    def __call__(self, step, state):
        return tf.logical_or(state["weight"] == 0, state["mean"] < self.threshold)


def run_if(condition, action, *arguments):
    """Runs an action of a training step where a condition holds, in the graph and on replicas.

    For what a step does now and then, from `after_step`. It is `tf.cond` for assignments, which
    `tf.cond` itself does not allow on several replicas.

    Args:
        condition: bool scalar, the same on every replica, such as `Every(100)(self.step)`.
        action: callable of `arguments` that assigns to variables; what it returns is dropped.
        *arguments: the tensors of this replica that the action takes, where it takes any.

    Example:

        def after_step(self, batch):
            due = Every(100, offset=99)(self.step)  # after 100 steps, 200, ...
            run_if(due, self.copy_weights_to_target)
            self.copies.update_state(due)  # a `keras.metrics.Mean`, logged by its name
    """

    def act(*arguments):
        action(*arguments)

    replicas.cond(tf.cast(condition, tf.bool), act, lambda *arguments: None, *arguments)
