"""Representations that are learned by telling what is alike from what is not."""

import keras
import tensorflow as tf

from customstep import replicas, variables
from customstep.checks import check_number
from customstep.divergences import contrastive
from customstep.losses import regularized, weighted_mean
from customstep.processing import augmented_views, check_processors
from customstep.step import Objective, StepModel, Update
from customstep.stochastic import StochasticStep

__all__ = ["MetricLearning", "SimCLR"]


@keras.saving.register_keras_serializable("customstep")
class MetricLearning(StepModel):
    """An embedding in which examples of one class are neighbours.

    The supervised contrastive loss of a batch, in which every class should occur more than once.
    Embeddings are compared by the cosine of their angle; `predict` returns them as the network
    makes them.

    Khosla et al. 2020 (arXiv:2004.11362), equation 2.

    Args:
        *args: `inputs` and `outputs` of a functional graph, as for `keras.Model`.
        temperature: by which similarities are divided, above 0.
        **kwargs: as for `keras.Model`.

    Raises:
        ValueError: the temperature is out of its range.

    Example:

        model = MetricLearning(inputs=images, outputs=embeddings)
        model.compile("adam")
        model.fit(images, labels)
    """

    terms = ("contrastive_loss",)

    def __init__(self, *args, temperature=0.1, **kwargs):
        super().__init__(*args, **kwargs)
        check_number("temperature", temperature, "(0, inf)")
        self.temperature = temperature

    def objective(self, batch, training):
        losses = contrastive(self(batch.x, training=training), batch.y, self.temperature)
        loss = weighted_mean(losses, batch.sample_weight)
        return Objective({"contrastive_loss": regularized(loss, self)})


@keras.saving.register_keras_serializable("customstep")
class SimCLR(StochasticStep):
    """An encoder that learns from images without labels, and a probe that reads its codes.

    Of every image two augmented views are made, whose projected codes are to be nearer to each
    other than to those of all other images in the batch. A second update trains the probe, on the
    codes of the images as they are and with the loss passed to `compile`, without an effect on
    the encoder: its metrics say during training what the codes are worth. `predict` is the probe.

    An image whose label is not known has sample weight 0, which leaves it out of the probe's loss.
    On several replicas use `BatchNormalization(synchronized=True)`: otherwise each has statistics
    of its own where the probe reads the codes, of which one is saved.

    Chen et al. 2020 (arXiv:2002.05709), algorithm 1.

    Args:
        encoder: built network from images to codes `(batch, features)`.
        projector: built network from codes to the vectors that are compared.
        probe: built network from codes to logits, usually one dense layer.
        augment: sequence of `processing.Processor`, whose `train` makes the views.
        temperature: by which similarities are divided, above 0.
        **kwargs: `name` and `dtype`, as for any layer.

    Raises:
        ValueError: the temperature is out of its range.
        TypeError: something else than a processor is among `augment`.

    Example:

        model = SimCLR(encoder, projector, probe, augment=[RandomResizedCrop(), RandomFlip()])
        model.compile({"contrastive": Adam(), "probe": Adam()}, loss, ["accuracy"])
        model.fit(images, labels)
    """

    terms = ("contrastive_loss", "probe_loss")

    def __init__(self, encoder, projector, probe, *, augment, temperature=0.1, **kwargs):
        super().__init__(**kwargs)
        check_number("temperature", temperature, "(0, inf)")
        self.encoder, self.projector, self.probe = encoder, projector, probe
        self.augment, self.temperature = check_processors("augment", augment), temperature

    def call(self, x, training=False):
        return self.probe(self.encoder(x, training=training), training=training)

    def updates(self):
        compared = self.encoder.trainable_variables + self.projector.trainable_variables
        return (
            Update("contrastive", self.contrastive_objective, compared),
            Update("probe", self.probe_objective, self.probe.trainable_variables),
        )

    def contrastive_objective(self, batch, training):
        views = augmented_views(batch, self.augment, self.draw_seed(training))
        views = tf.concat([view.x for view in views], axis=0)
        vectors = self.projector(self.encoder(views, training=training), training=training)
        pairs = tf.tile(replicas.places(batch.size), [2])
        losses = contrastive(vectors, pairs, self.temperature)
        loss = regularized(tf.reduce_mean(losses), self.encoder, self.projector)
        return Objective({"contrastive_loss": loss})

    def probe_objective(self, batch, training):
        with variables.without_effects(self.encoder.variables):
            codes = self.encoder(batch.x, training=False)
        y_pred = self.probe(codes, training=training)
        return Objective({"probe_loss": self.compiled_loss(batch, y_pred, training)}, y_pred)
