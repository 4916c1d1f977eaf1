"""A network that learns from what another one says."""

import keras

from customstep import variables
from customstep.checks import check_number
from customstep.divergences import softened_kl
from customstep.losses import regularized, weighted_mean
from customstep.step import Objective, StepModel

__all__ = ["Distillation"]


@keras.saving.register_keras_serializable("customstep")
class Distillation(StepModel):
    """A student that is told the right answer, and what its teacher thinks of all the others.

    It minimizes h times the loss passed to `compile` plus (1 - h) times the divergence from the
    teacher's answers, both softened by a temperature. `predict` is the student; it is saved with
    the teacher, `model.student.save(...)` saves it alone.

    Hinton, Vinyals and Dean 2015 (arXiv:1503.02531).

    Args:
        student: built network from inputs to logits `(batch, classes)`.
        teacher: trained network of the same inputs and outputs. It is frozen: its `trainable`
            becomes False.
        temperature: by which logits are divided, above 0.
        hard_weight: h, in `[0, 1]`.
        **kwargs: `name` and `dtype`, as for any layer.

    Raises:
        ValueError: a number is out of its range.

    Example:

        model = Distillation(student, teacher)
        model.compile("adam", SparseCategoricalCrossentropy(from_logits=True), ["accuracy"])
        model.fit(images, labels)
    """

    terms = ("hard_loss", "soft_loss")

    def __init__(self, student, teacher, *, temperature=4.0, hard_weight=0.1, **kwargs):
        super().__init__(**kwargs)
        self.student, self.teacher = student, teacher
        self.temperature, self.hard_weight = temperature, hard_weight
        self._check_arguments()

    def objective(self, batch, training):
        hard = super().objective(batch, training)
        with variables.without_effects(self.teacher.variables):
            answers = self.teacher(batch.x, training=False)
        soft = softened_kl(answers, hard.y_pred, self.temperature)
        soft = regularized(weighted_mean(soft, batch.sample_weight), self.student)  # as `hard` is
        terms = {
            "hard_loss": self.hard_weight * hard.total,
            "soft_loss": (1 - self.hard_weight) * soft,
        }
        return Objective(terms, hard.y_pred)

    def call(self, x, training=False):
        return self.student(x, training=training)

    def _check_arguments(self):
        check_number("temperature", self.temperature, "(0, inf)")
        check_number("hard_weight", self.hard_weight, "[0, 1]")
        self.teacher.trainable = False
