"""Images of one kind into images of another, learned without pairs."""

import keras

from customstep import variables
from customstep.checks import check_number
from customstep.divergences import absolute_error
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
        to_b, to_a: built networks from images of one domain to those of the other, of different
            names.
        judge_b, judge_a: built networks from images to logits, `(batch, 1)` or one for each patch.
        loss: a pair of losses for both games; `losses.LeastSquares()` by default, whose generator's
            half is half of the paper's, so that the weights count twice as much beside it.
        cycle_weight: of the way there and back, at least 0.
        identity_weight: of what is in the domain already, at least 0.
        **kw: `name` and `dtype`, as for any layer.

    Data are `(images of A, images of B)`, in any order. Sample weights count for both images of a
    pair, in all terms but those that deceive.

    Raises:
        ValueError: a number is out of its range, or both generators have one name.

    Example:

        model = CycleGAN(to_b, to_a, judge_b, judge_a)
        model.compile({"generators": Adam(2e-4, 0.5), "discriminators": Adam(2e-4, 0.5)})
        model.fit(photographs, paintings, epochs=100)
    """

    terms = ("generator_loss", "cycle_loss", "identity_loss", "discriminator_loss")

    def __init__(
        self, to_b, to_a, judge_b, judge_a, *, loss=None, cycle_weight=10, identity_weight=5, **kw
    ):
        super().__init__(**kw)
        self.to_b, self.to_a, self.judge_b, self.judge_a = to_b, to_a, judge_b, judge_a
        self.loss = LeastSquares() if loss is None else loss
        self.cycle_weight, self.identity_weight = cycle_weight, identity_weight
        self._check_arguments()

    def updates(self):
        generators = self.to_b.trainable_variables + self.to_a.trainable_variables
        judges = self.judge_b.trainable_variables + self.judge_a.trainable_variables
        return (
            Update("generators", self.generators_objective, generators),
            Update("discriminators", self.discriminators_objective, judges),
        )

    def directions(self, batch):
        """For each: its generator, the way back, its judge, images to translate, real ones."""
        yield self.to_b, self.to_a, self.judge_b, batch.x, batch.y
        yield self.to_a, self.to_b, self.judge_a, batch.y, batch.x

    def generators_objective(self, batch, training):
        deceived, cycle, identity, made, weights = 0.0, 0.0, 0.0, {}, batch.sample_weight
        for there, back, judge, x, y in self.directions(batch):
            fake = made[there.name] = there(x, training=training)
            with variables.without_effects(judge.variables):
                real = judge(y, training=training) if self.loss.relativistic else None
                game = self.loss.generator(real, judge(fake, training=training))
            deceived += regularized(game, there)
            cycle += weighted_mean(absolute_error(back(fake, training=training), x), weights)
            identity += weighted_mean(absolute_error(there(y, training=training), y), weights)
        weighted = self.cycle_weight * cycle, self.identity_weight * identity
        return Objective(dict(zip(self.terms, (deceived, *weighted))), made=made)

    def discriminators_objective(self, batch, training):
        loss = 0.0
        for there, _, judge, _, y in self.directions(batch):
            logits = (judge(images, training=training) for images in (y, batch.made[there.name]))
            loss += regularized(self.loss.discriminator(*logits, batch.sample_weight), judge)
        return Objective({"discriminator_loss": loss})

    def call(self, x, training=False):
        return self.to_b(x, training=training)

    def _check_arguments(self):
        check_number("cycle_weight", self.cycle_weight, "[0, inf)")
        check_number("identity_weight", self.identity_weight, "[0, inf)")
        if self.to_b.name == self.to_a.name:
            raise ValueError(
                f"The generators cannot be told apart. Expected two networks of different names; "
                f"received '{self.to_b.name}' twice. Name them: `keras.Model(..., name='to_b')`."
            )
