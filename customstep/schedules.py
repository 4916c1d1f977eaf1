"""Learning-rate schedules: callables of the step, for `compile(schedule_lr=...)`.

A schedule receives the number of descents its optimizer has done, a float32 scalar, and returns
the rate of the next one. Any callable will do, those of `keras.optimizers.schedules` too. The ones
here are saved with the model, say what is wrong with their arguments, and go on beyond their last
step at the rate they ended with. They take whole arrays of steps as well, to draw the curve.

The weight of a loss may be such a callable, too; one that grows from 0 to w over n steps is
`keras.optimizers.schedules.PolynomialDecay(0.0, n, w)`.
"""

import dataclasses
import math

import keras
import tensorflow as tf

from customstep.checks import check_integer, check_number
from customstep.saving import SavedDataclass
from customstep.stateful import BoundSchedule, StatefulSchedule, moving_mean

__all__ = [
    "ExponentialDecay",
    "LinearDecay",
    "OneCycle",
    "ReduceOnPlateau",
    "StepDecay",
    "WarmupCosine",
    "check_weight",
    "weight_at",
]


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class StepDecay(SavedDataclass):
    """A staircase: the rate is multiplied by `decay_rate` every `decay_steps` steps.

    The classic of convolutional networks (He et al. 2016, arXiv:1512.03385, divide by 10 as the
    error stops falling), where one knows how long a rate is worth keeping:
    `rate * decay_rate ** (step // decay_steps)`.

    Args:
        rate: the first rate, above 0.
        decay_steps: the length of a stair, a whole number of steps.
        decay_rate: the factor from one stair to the next, above 0.

    Raises:
        ValueError: an argument is out of its range.

    Example:

        StepDecay(0.001, decay_steps=1000)(1999.0)  # 0.0001
    """

    rate: float
    decay_steps: int
    decay_rate: float = 0.1

    def __post_init__(self):
        check_number("rate", self.rate, "(0, inf)")
        check_integer("decay_steps", self.decay_steps, 1)
        check_number("decay_rate", self.decay_rate, "(0, inf)")

    def __call__(self, step):
        return self.rate * self.decay_rate ** (_float(step) // self.decay_steps)


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class ExponentialDecay(SavedDataclass):
    """The smooth form of `StepDecay`: the same rates at the edges of the stairs, no jumps between.

    `rate * decay_rate ** (step / decay_steps)`. With a `decay_rate` above 1 it grows: the loss
    over such a run shows the largest rate that a model stands (Smith 2017, arXiv:1506.01186,
    section 3.3).

    Args:
        rate: the first rate, above 0.
        decay_steps: after how many steps the rate is `rate * decay_rate`, a whole number.
        decay_rate: the factor over `decay_steps` steps, above 0.

    Raises:
        ValueError: an argument is out of its range.

    Example:

        ExponentialDecay(0.001, decay_steps=1000)(500.0)  # 0.000316
    """

    rate: float
    decay_steps: int
    decay_rate: float = 0.1

    def __post_init__(self):
        check_number("rate", self.rate, "(0, inf)")
        check_integer("decay_steps", self.decay_steps, 1)
        check_number("decay_rate", self.decay_rate, "(0, inf)")

    def __call__(self, step):
        return self.rate * self.decay_rate ** (_float(step) / self.decay_steps)


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class LinearDecay(SavedDataclass):
    """A constant rate, then a straight line to 0.

    The usual end of a GAN's training: the last steps, ever smaller, settle what oscillates
    (Zhu et al. 2017, arXiv:1703.10593, section 4, for one).

    Args:
        rate: the constant rate, above 0.
        steps: how many steps the training has; the rate is 0 from there on.
        start: where the line begins, as a fraction of `steps` in `[0, 1)`.

    Raises:
        ValueError: an argument is out of its range.

    Example:

        LinearDecay(0.1, steps=100)(75.0)  # 0.05
    """

    rate: float
    steps: int
    start: float = 0.5

    def __post_init__(self):
        check_number("rate", self.rate, "(0, inf)")
        check_integer("steps", self.steps, 1)
        check_number("start", self.start, "[0, 1)")

    def __call__(self, step):
        left = (self.steps - _float(step)) / (self.steps * (1 - self.start))
        return self.rate * tf.clip_by_value(left, 0.0, 1.0)


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class WarmupCosine(SavedDataclass):
    """A straight line up from 0, then half a cosine down.

    A safe first choice where the length of the training is known, and the usual one for
    transformers and large batches. The warm-up is that of Goyal et al. 2017 (arXiv:1706.02677,
    section 2.2), the cosine that of Loshchilov and Hutter 2017 (arXiv:1608.03983, equation 5)
    without restarts.

    Args:
        rate: the highest rate, above 0, reached at the end of the warm-up.
        steps: how many steps the training has.
        warmup: how much of it the line up takes, as a fraction of `steps` in `[0, 1)`.
        final: the last rate, as a fraction of `rate` in `[0, 1]`.

    Raises:
        ValueError: an argument is out of its range.

    Example:

        WarmupCosine(0.1, steps=1000, warmup=0.1)(550.0)  # 0.05
    """

    rate: float
    steps: int
    warmup: float = 0.05
    final: float = 0.0

    def __post_init__(self):
        check_number("rate", self.rate, "(0, inf)")
        check_integer("steps", self.steps, 1)
        check_number("warmup", self.warmup, "[0, 1)")
        check_number("final", self.final, "[0, 1]")

    def __call__(self, step):
        step, warmup = _float(step), self.warmup * self.steps
        line = tf.where(step < warmup, step / warmup, 1.0) if warmup else 1.0
        progress = tf.clip_by_value((step - warmup) / (self.steps - warmup), 0.0, 1.0)
        cosine = (1 + tf.cos(math.pi * progress)) / 2
        return self.rate * line * (self.final + (1 - self.final) * cosine)


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class OneCycle(SavedDataclass):
    """A straight line up, the same way down, and a short descent to 0.

    Where few epochs have to do: rates far above what training could begin with, for a part of the
    way, are what makes it fast (Smith and Topin 2018, arXiv:1708.07120, "super-convergence").
    Unlike theirs, it leaves the momentum alone.

    Args:
        rate: the highest rate, above 0, reached in the middle of the cycle.
        steps: how many steps the training has; the rate is 0 from there on.
        cycle: how much of it the way up and down takes, as a fraction of `steps` in `(0, 1)`.
        initial: the rate at both ends of the cycle, as a fraction of `rate` in `[0, 1]`.

    Raises:
        ValueError: an argument is out of its range.

    Example:

        OneCycle(0.1, steps=1000, cycle=0.8)(400.0)  # 0.1
    """

    rate: float
    steps: int
    cycle: float = 0.9
    initial: float = 0.04

    def __post_init__(self):
        check_number("rate", self.rate, "(0, inf)")
        check_integer("steps", self.steps, 1)
        check_number("cycle", self.cycle, "(0, 1)")
        check_number("initial", self.initial, "[0, 1]")

    def __call__(self, step):
        step, cycle = _float(step), self.cycle * self.steps
        height = 1 - tf.abs(2 * step / cycle - 1)  # 0 at both ends of the cycle, 1 between
        tail = tf.maximum((self.steps - step) / (self.steps - cycle), 0.0)  # 1 at its end
        rise = self.initial + (1 - self.initial) * height
        return self.rate * tf.where(step < cycle, rise, self.initial * tail)


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class ReduceOnPlateau(StatefulSchedule):
    """Multiplies the rate by `factor` whenever the training loss has stopped falling.

    `keras.callbacks.ReduceLROnPlateau` for the steps within an epoch: for long epochs, streams
    without epochs, or updates of one model that are to slow down each at its own time. It looks
    at the loss of every step, smoothed; where the moving mean has not gone below its best value
    by `min_delta` for `patience` steps in a row, the rate is reduced. All of that happens in the
    graph, and is saved with the model.

    Args:
        rate: the first rate, above 0.
        patience: how many steps without improvement are too many. A batch or two of an unlucky
            draw is no plateau: take hundreds.
        monitor: a term or a log of the update's objective, or "loss", their sum. Less is better.
        factor: by which the rate is multiplied, in `(0, 1)`.
        min_delta: the least improvement that counts, at least 0, in the units of what is
            monitored.
        min_rate: below which the rate does not fall, at least 0.
        smoothing: memory of the moving mean, in `[0, 1)`: 0.99 remembers about 100 steps, 0 takes
            the loss as it is.

    Raises:
        ValueError: an argument is out of its range; in the first step, that the objective has
            nothing of the name `monitor`.

    Example:

        model.compile(Adam(), "mse", schedule_lr=ReduceOnPlateau(0.001, patience=500))
    """

    rate: float
    _: dataclasses.KW_ONLY
    patience: int
    monitor: str = "loss"
    factor: float = 0.1
    min_delta: float = 1e-4
    min_rate: float = 0.0
    smoothing: float = 0.99

    def __post_init__(self):
        check_number("rate", self.rate, "(0, inf)")
        check_integer("patience", self.patience, 1)
        check_number("factor", self.factor, "(0, 1)")
        check_number("min_delta", self.min_delta, "[0, inf)")
        check_number("min_rate", self.min_rate, f"[0, {self.rate}]")
        check_number("smoothing", self.smoothing, "[0, 1)")

    def initial_state(self):
        return {"rate": self.rate, "best": math.inf, "waited": 0, "mean": 0, "weight": 0}

    def observe(self, state, values):
        smoothed = moving_mean(state, values[self.monitor], self.smoothing)
        improved = smoothed["mean"] < state["best"] - self.min_delta
        waited = tf.where(improved, 0.0, state["waited"] + 1)
        enough = waited >= self.patience
        reduced = tf.maximum(state["rate"] * self.factor, self.min_rate)
        return {
            "rate": tf.where(enough, reduced, state["rate"]),
            "best": tf.where(improved, smoothed["mean"], state["best"]),
            "waited": tf.where(enough, 0.0, waited),
            **smoothed,
        }

    def __call__(self, step, state):
        return state["rate"]


def check_weight(name, weight):
    """Raises an error unless a term's weight is a number of at least 0, or a schedule of such."""
    if isinstance(weight, StatefulSchedule):
        raise ValueError(
            f"`{name}` depends on what was measured. Expected a number or a callable of the step "
            f"alone; received {weight!r}. Use a schedule such as "
            "`customstep.schedules.LinearDecay`, or a function of the step."
        )
    if callable(weight):
        BoundSchedule(weight).check(name, "[0, inf)")
    else:
        check_number(name, weight, "[0, inf)")


def weight_at(weight, step):
    """What a term weighs at a step.

    Args:
        weight: number, or callable `step -> weight` of a float32 scalar.
        step: number or scalar, how many steps are done.

    Returns:
        Scalar of `keras.config.floatx()`.
    """
    return tf.cast(weight(_float(step)) if callable(weight) else weight, keras.config.floatx())


def _float(step):
    return tf.cast(step, tf.float32)
