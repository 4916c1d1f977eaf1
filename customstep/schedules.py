"""Learning-rate schedules: callables of the step, for `compile(schedule_lr=...)`.

A schedule receives the number of descents its optimizer has done, a float32 scalar, and returns
the rate of the next one. Any callable will do; these are saved with the model.
"""

import dataclasses

import keras
import tensorflow as tf

from customstep.saving import SavedDataclass

__all__ = ["LinearDecay"]


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
        for name, holds, expected in (
            ("rate", self.rate > 0, "a number above 0"),
            ("steps", self.steps >= 1, "a whole number of at least 1"),
            ("start", 0 <= self.start < 1, "a number in [0, 1)"),
        ):
            if not holds:
                raise ValueError(
                    f"`{name}` is out of its range. Expected {expected}; received "
                    f"{getattr(self, name)!r}. Correct the number."
                )

    def __call__(self, step):
        left = (self.steps - step) / (self.steps * (1 - self.start))
        return self.rate * tf.clip_by_value(left, 0.0, 1.0)
