"""A learning rate that changes during training (R3: dynamic learning rates)."""

import keras

from customstep.step import StepModel

__all__ = ["ScheduledClassifier"]


@keras.saving.register_keras_serializable("customstep")
class ScheduledClassifier(StepModel):
    """A classifier whose learning rate follows a function of the step.

    Before every descent `schedule_lr`, passed to `compile`, is given the number of descents so
    far, and the optimizer descends with the rate it returns, whatever rate the optimizer was made
    with. The rate is logged as `learning_rate`, and training that is resumed goes on where the
    schedule was. Any `StepModel` does all this; the class adds nothing, and is a place to start a
    step of your own from.

    Use a callback, `keras.callbacks.LearningRateScheduler`, where the rate changes only from
    epoch to epoch. Where no one needs to see the rate, `keras.optimizers.schedules` inside the
    optimizer do as well.

    `customstep.schedules` has the usual schedules, with their papers. One of your own is
    arithmetic on a float32 scalar, with `tf.where` rather than `if`; decorate it with
    `@keras.saving.register_keras_serializable()`, and the compiled model can be loaded.

    Args:
        inputs, outputs: `model.input` and `model.output` of a functional model, `model.inputs` and
            `model.outputs` of a sequential one. Any other way to make a `keras.Model` works too.
        **kwargs: `name` and `trainable`, as for `keras.Model`.

    Raises:
        ValueError: (`compile`) the optimizer has a schedule of its own beside `schedule_lr`.
        TypeError: (`compile`) `schedule_lr` cannot be called.

    Example:

        def schedule_lr(step):  # 0.001, after 1000 steps 0.0001, after 2000 steps 0.00001
            return 0.001 * 0.1 ** (step // 1000)

        classifier = ScheduledClassifier(inputs=model.input, outputs=model.output)
        classifier.compile(
            "adam", "sparse_categorical_crossentropy", ["accuracy"], schedule_lr=schedule_lr
        )
        classifier.fit(images, labels, epochs=5)
    """
