"""A step that processes its batch: augmentation in, predictions out (R5)."""

import keras
import tensorflow as tf

from customstep import replicas
from customstep.processing import augmented, check_processors
from customstep.stochastic import StochasticStep

__all__ = ["Processed"]


@keras.saving.register_keras_serializable("customstep")
class Processed(StochasticStep):
    """A model with its pre- and post-processing inside: augmentation, scaling, test-time views.

    `fit` runs the processors' `train` in order. `evaluate` and `predict` run `infer`, the path
    without random numbers. `predict` also averages the outputs over `views` of its input, the
    input itself among them, and then runs the processors' `outputs` in reverse order. So the
    saved model takes raw data and gives finished predictions, as one that is exported for serving
    does, with nothing left to repeat elsewhere, and `evaluate` reports the model alone,
    comparable to `keras.Model`.

    Use `keras.layers` instead for what concerns the inputs alone and belongs to the network. With
    another template of one network it combines by inheritance, `class Both(Processed, Other)`.

    Krizhevsky et al. 2012 (NeurIPS, section 4.1) for augmentation and averaged views; the
    processors name their own papers. Outputs are averaged as the model gives them: logits, whose
    mean is the geometric mean of the probabilities, where `processing.Softmax` is a processor,
    and probabilities where the model itself ends in a softmax.

    For a copy of a functional one use `type(model).from_config(model.get_config())`:
    `keras.models.clone_model`, which would drop the processors, is an error.

    Args:
        *args: `inputs` and `outputs` of a functional graph, as for `keras.Model`; none of them
            where a subclass has a `call`.
        processors: sequence of `processing.Processor`.
        views: sequence of processors whose `infer` gives another view of a batch, such as
            `[processing.Flip()]`. The `outputs` of a view, if it has any, map its predictions
            back to the original before they are averaged.
        **kwargs: as for `keras.Model`.

    Raises:
        TypeError: a processor or view is none.

    Example:

        model = Processed(
            inputs=inputs,
            outputs=logits,
            processors=[Normalize(127.5, 127.5), OneHot(10), RandomFlip(), Mixup(), Softmax()],
            views=[Flip()],
        )
        model.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True))
        model.fit(images, labels)  # uint8 images, integer labels
        model.predict(images)  # probabilities, averaged over each image and its mirror image
    """

    def __init__(self, *args, processors=(), views=(), **kwargs):
        super().__init__(*args, **kwargs)
        self.processors = check_processors("processors", processors)
        self.views = check_processors("views", views)

    def preprocess(self, batch, training):
        batch = super().preprocess(batch, training)
        if training:
            return augmented(batch, self.processors, self.draw_seed(training))
        for processor in self.processors:
            batch = processor.infer(batch)
        return batch

    def predict_step(self, data):
        batch = self._receive(data, training=False)
        outputs = [replicas.on_examples(self, batch.x)]
        for view in self.views:
            outputs.append(view.outputs(replicas.on_examples(self, view.infer(batch).x)))
        return self.postprocess(keras.tree.map_structure(_mean, *outputs))

    def postprocess(self, outputs):
        for processor in reversed(self.processors):
            outputs = processor.outputs(outputs)
        return super().postprocess(outputs)


def _mean(*outputs):
    if len(outputs) == 1:
        return outputs[0]
    # In the range and precision of float32 at least, whatever the model computes in.
    dtype = tf.float32 if outputs[0].dtype.size < 4 else outputs[0].dtype
    return tf.add_n([tf.cast(one, dtype) for one in outputs]) / len(outputs)
