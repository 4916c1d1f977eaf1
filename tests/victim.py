"""A small run for other processes to kill: `python -m tests.victim OUT`.

It trains a GAN with a checkpoint after every step, writes sheets, a table and the model, and says
`begun` after each step. What it leaves in OUT, but for the checkpoints, is to be the same
however often it was killed.
"""

import argparse
import pathlib
import sys

import customstep  # isort: skip  (first: it silences TensorFlow)

import keras
import numpy as np
import tensorflow as tf

from customstep import streams
from tests.descriptors import conditions_compiled, gan

EPOCHS, BATCHES = 4, 20


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--fresh", action="store_true")
    args = parser.parse_args(argv)
    keras.utils.set_random_seed(0)
    images = tf.constant(
        np.random.default_rng(0).uniform(-1, 1, (8 * BATCHES, 4, 4, 1)).astype("float32")
    )
    data = streams.index_batches(len(images), 8).map(lambda indices: tf.gather(images, indices))
    model = gan(ema_decay=0.9)
    model.compile(**conditions_compiled())
    begun = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: print("begun", flush=True)
    )
    history = model.fit(
        data,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[
            begun,
            customstep.SampleGrid(args.out, rows=2, cols=2),
            keras.callbacks.CSVLogger(args.out / "history.csv"),
            customstep.Resume(args.out / "checkpoints", every=args.every, fresh=args.fresh),
        ],
    )
    with customstep.files.atomic_path(args.out / "history.txt") as path:
        path.write_text(repr(history.history))
    model.save_weights(args.out / "gan.weights.h5")
    print("ended", flush=True)


if __name__ == "__main__":
    sys.exit(main())
