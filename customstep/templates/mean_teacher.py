"""A classifier that learns from few labels, and from agreeing with itself on all other examples."""

import keras

from customstep import variables
from customstep.averages import follow, frozen_copy
from customstep.checks import check_number
from customstep.divergences import probability_gap
from customstep.losses import weighted_mean
from customstep.processing import augmented_views, check_processors
from customstep.schedules import check_weight, weight_at
from customstep.stochastic import StochasticStep

__all__ = ["MeanTeacher"]


@keras.saving.register_keras_serializable("customstep")
class MeanTeacher(StochasticStep):
    """A student, and a teacher that is the moving average of its weights.

    The student minimizes the loss passed to `compile`, and on all examples the squared difference
    of its class probabilities from the teacher's, who sees the example augmented otherwise.
    `evaluate` and `predict` ask the teacher, so that its consistency loss is 0 there.

    An example whose label is not known has sample weight 0: it counts in the second term alone.
    Keras divides the loss by the number of all examples, so give the others the weight batch size
    / labelled examples in a batch.

    On several replicas use `BatchNormalization(synchronized=True)`: otherwise each replica has a
    teacher with statistics of its own, of which one is saved.

    Tarvainen and Valpola 2017 (arXiv:1703.01780); Laine and Aila 2017 (arXiv:1610.02242) for a
    weight that grows from 0.

    Args:
        student: built network from inputs to logits `(batch, classes)`.
        augment: sequence of `processing.Processor`, whose `train` makes the two views.
        consistency_weight: number of at least 0, or a callable of the step.
        ema_decay: of the teacher, in `[0, 1)`.
        **kwargs: `name` and `dtype`, as for any layer.

    Raises:
        ValueError: a number is out of its range.
        TypeError: something else than a processor is among `augment`.

    Example:

        model = MeanTeacher(network, augment=[RandomShift(2), RandomFlip()])
        model.compile("adam", SparseCategoricalCrossentropy(from_logits=True), ["accuracy"])
        model.fit(images, labels, sample_weight=np.where(is_known, 10, 0))
    """

    terms = ("supervised_loss", "consistency_loss")

    def __init__(self, student, *, augment=(), consistency_weight=10.0, ema_decay=0.99, **kwargs):
        super().__init__(**kwargs)
        self.student, self.teacher = student, frozen_copy(student, "teacher")
        self.augment = check_processors("augment", augment)
        self.consistency_weight, self.ema_decay = consistency_weight, ema_decay
        self._check_arguments()

    def objective(self, batch, training):
        augment = self.augment if training else ()
        first, second = augmented_views(batch, augment, self.draw_seed(training))
        known = super().objective(first, training)  # of the examples that have a label
        with variables.without_effects(self.teacher.variables):
            opinion = self.teacher(second.x, training=False)
        gap = weighted_mean(probability_gap(opinion, known.y_pred))
        gap *= weight_at(self.consistency_weight, self.step)
        return known._replace(terms={"supervised_loss": known.total, "consistency_loss": gap})

    def after_step(self, batch):
        follow(self.teacher, self.student, self.ema_decay, self.step)

    def call(self, x, training=False):
        return (self.student if training else self.teacher)(x, training=training)

    def _check_arguments(self):
        check_weight("consistency_weight", self.consistency_weight)
        check_number("ema_decay", self.ema_decay, "[0, 1)")
