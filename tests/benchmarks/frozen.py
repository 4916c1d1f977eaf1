"""What a step costs with most layers frozen, beside the step that trains them all.

    python -m tests.benchmarks.frozen

Both train the same network on the same batches; the two take turns in one process. Freezing saves
the backward pass of what is frozen and its optimizer's work; the forward pass remains. Where the
backward pass costs twice the forward pass, a ratio near a third is the best one can hope for.
On two shared cores it printed 0.31 (stem frozen), 0.64 (half of it) and 0.99 (nothing).
"""

import time

from customstep.templates import PartiallyFrozen  # isort: skip  (first: it keeps TensorFlow quiet)

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tests.benchmarks import timing


def classifier(freeze):
    """A small convolutional net on 32 x 32 images: a stem of 4 stages, and a head."""
    inputs = keras.Input((32, 32, 3))
    x = inputs
    for stage, filters in enumerate((32, 64, 128, 256)):
        x = layers.Conv2D(filters, 3, 1 + (stage > 0), "same", name=f"stem{stage}_conv")(x)
        x = layers.BatchNormalization(name=f"stem{stage}_norm")(x)
        x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = PartiallyFrozen(
        inputs=inputs, outputs=layers.Dense(10, name="head")(x), freeze=freeze
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    return model


def compare(name, freeze, data, rounds):
    frozen, full = classifier(freeze), classifier(())

    def run(model):
        return timing.seconds(
            lambda callbacks: model.fit(data, verbose=0, shuffle=False, callbacks=callbacks)
        )

    traced = []
    for model in (frozen, full):
        started = time.perf_counter()
        model.fit(data.take(2), verbose=0, shuffle=False)
        traced.append(time.perf_counter() - started)
    middle, low, high = timing.ratios(lambda: run(frozen), lambda: run(full), rounds)
    print(
        f"{name}: {middle:.3f} of the full step (quartiles {low:.3f} to {high:.3f}); its trace "
        f"took {traced[0] / traced[1]:.2f} of the full one's",
        flush=True,
    )


def main(steps=20, rounds=8):
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(32, 32, 32, 3)).astype("float32"), rng.integers(0, 10, 32)
    data = tf.data.Dataset.from_tensors(batch).repeat(steps)
    compare("stem frozen, head trained", "stem*", data, rounds)
    compare("half of the stem frozen", ["stem0*", "stem1*"], data, rounds)
    compare("nothing frozen", (), data, rounds)


if __name__ == "__main__":
    main()
