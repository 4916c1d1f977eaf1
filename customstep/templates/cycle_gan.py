"""Images of one kind into images of another, learned without pairs."""

import keras
import tensorflow as tf

from customstep import variables
from customstep.checks import check_number
from customstep.losses import LeastSquares, regularized, weighted_mean
from customstep.step import Objective, StepModel, Update

__all__ = ["CycleGAN"]


@keras.saving.register_keras_serializable("customstep")
class CycleGAN(StepModel):
    """Two generators, from domain A to B and back, and a discriminator for each domain.

    The generators are to deceive the discriminators, to lead back to where an image came from,
    and to leave alone what is in their domain already. The discriminators learn from the same
    generated images. `predict` translates A to B; `model.to_a.predict` does the reverse.

    Zhu et al. 2017 (arXiv:1703.10593), equation 3 and, for the last term, section 5.2. It leaves
    out the history of earlier generated images.

    Args:
        to_b, to_a: built networks from images of one domain to those of the other.
        judge_b, judge_a: built networks from images to logits, `(batch, 1)` or one for each patch.
        loss: a pair of losses for both games; `losses.LeastSquares()`, the paper's, by default.
        cycle_weight: of the way there and back, at least 0.
        identity_weight: of what is in the domain already, at least 0.
        **kwargs: `name` and `dtype`, as for any layer.

    Data are `(images of A, images of B)`, in any order. Sample weights count for both images of a
    pair, in all terms but those that deceive.

    Raises:
        ValueError: a number is out of its range.

    Example:

        model = CycleGAN(to_b, to_a, judge_b, judge_a)
        model.compile({"generators": Adam(2e-4, 0.5), "discriminators": Adam(2e-4, 0.5)})
        model.fit(photographs, paintings, epochs=100)
    """

    terms = ("generator_loss", "cycle_loss", "identity_loss", "discriminator_loss")

    def __init__(
        self,
        to_b,
        to_a,
        judge_b,
        judge_a,
        *,
        loss=None,
        cycle_weight=10.0,
        identity_weight=5.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_number("cycle_weight", cycle_weight, "[0, inf)")
        check_number("identity_weight", identity_weight, "[0, inf)")
        self.to_b, self.to_a, self.judge_b, self.judge_a = to_b, to_a, judge_b, judge_a
        self.loss = LeastSquares() if loss is None else loss
        self.cycle_weight, self.identity_weight = cycle_weight, identity_weight

    def call(self, x, training=False):
        return self.to_b(x, training=training)

    def updates(self):
        generators = self.to_b.trainable_variables + self.to_a.trainable_variables
        judges = self.judge_b.trainable_variables + self.judge_a.trainable_variables
        return (
            Update("generators", self.generators_objective, generators),
            Update("discriminators", self.discriminators_objective, judges),
        )

    def generators_objective(self, batch, training):
        terms, made = dict.fromkeys(self.terms[:3], 0.0), {}
        for there, back, judge, x, y in self._directions(batch):
            fake = made[there.name] = there(x, training=training)
            with variables.without_effects(judge.variables):
                deceived = self.loss.generator(None, judge(fake, training=training))
            distances = {
                "cycle_loss": (self.cycle_weight, back(fake, training=training), x),
                "identity_loss": (self.identity_weight, there(y, training=training), y),
            }
            terms["generator_loss"] += regularized(deceived, there)
            for name, (weight, found, wanted) in distances.items():
                error = tf.abs(tf.cast(found, tf.float32) - tf.cast(wanted, tf.float32))
                terms[name] += weight * weighted_mean(error, batch.sample_weight)
        return Objective(terms, made=made)

    def discriminators_objective(self, batch, training):
        loss = 0.0
        for there, _, judge, _, y in self._directions(batch):
            fake = tf.stop_gradient(batch.made[there.name])
            logits = (judge(images, training=training) for images in (y, fake))
            game = self.loss.discriminator(*logits, batch.sample_weight)
            loss += regularized(game, judge)
        return Objective({"discriminator_loss": loss})

    def _directions(self, batch):
        """For each: its generator, the way back, its judge, images to translate, real ones."""
        yield self.to_b, self.to_a, self.judge_b, batch.x, batch.y
        yield self.to_a, self.to_b, self.judge_a, batch.y, batch.x
