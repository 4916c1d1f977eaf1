"""Make `assets/fashion_features.keras`, the network whose features `customstep evaluate` compares.

    python assets/make_fashion_features.py               # TFDS downloads Fashion-MNIST
    python assets/make_fashion_features.py --data-dir D  # TFDS's prepared data sets are in D
    python assets/make_fashion_features.py --dataset mnist --no-mirror --epochs 3 --out mnist.keras

The last one makes a network for `customstep evaluate --network mnist.keras`.

It learns the ten classes of the 60,000 official training images, mirrored and shifted at random.
Of the official test images it names 93.25 % rightly. That took about ten minutes on two shared
cores that compute in bfloat16. The file holds its float32 weights, 1.25 MB.
"""

import argparse
import pathlib

import customstep  # before keras: it keeps TensorFlow's start-up lines off the screen
import keras
import numpy as np
import tensorflow as tf
from customstep import precision
from customstep.files import atomic_path
from keras import layers

OUT = pathlib.Path(__file__).parent / "fashion_features.keras"
SEED = 0
EPOCHS = 12
BATCH_SIZE = 128
LEARNING_RATE = 2e-3  # falls along half a cosine
WEIGHT_DECAY = 1e-2
SHIFT = 2  # pixels, up to which an image is moved
TOTAL_VARIANCE = 100  # of the features of the real test images, all added up


def build_network():
    """Images `(28, 28, 1)` in [0, 255] to features `(128,)` and ten logits; 0.3 M weights."""
    inputs = keras.Input((28, 28, 1))
    x = layers.Rescaling(1 / 127.5, -1)(inputs)
    for filters in (32, 64, 128):
        for _ in range(2):
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = layers.BatchNormalization()(x)
            x = layers.ReLU()(x)
        if filters < 128:
            x = layers.MaxPooling2D()(x)
    features = layers.GlobalAveragePooling2D(dtype="float32", name="features")(x)
    logits = layers.Dense(10, dtype="float32", name="logits")(features)
    return keras.Model(inputs, [features, logits])


class Augmented(customstep.StepModel):
    """A classifier that sees its training images shifted and, by default, mirrored."""

    mirror = True

    def preprocess(self, batch, training):
        if not training:
            return batch
        images = tf.image.random_flip_left_right(batch.x) if self.mirror else batch.x
        padded = tf.pad(images, [[0, 0], [SHIFT, SHIFT], [SHIFT, SHIFT], [0, 0]])
        return batch._replace(x=tf.image.random_crop(padded, tf.shape(images)))


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="fashion_mnist", help="a TFDS name, 28 x 28 gray")
    parser.add_argument("--data-dir", help="folder of TFDS's prepared data sets")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--no-mirror", action="store_true", help="as digits must not be")
    parser.add_argument("--out", type=pathlib.Path, default=OUT, help="the file to write")
    args = parser.parse_args(argv)
    if args.dataset != "fashion_mnist" and args.out == OUT:
        parser.error("the bundled network is one of fashion_mnist; name another file with --out")

    keras.utils.set_random_seed(SEED)
    policy = "mixed_bfloat16" if precision.has_fast_bfloat16() else "float32"
    keras.mixed_precision.set_global_policy(policy)
    source = dict(source=args.dataset, image_range=(0, 255), data_dir=args.data_dir)
    train = customstep.load_images(**source, batch_size=BATCH_SIZE)
    test = customstep.load_images(**source, split="test", batch_size=500, shuffle=False)
    network = build_network()
    model = Augmented(network.input, network.output[1])
    model.mirror = not args.no_mirror
    model.compile(
        keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(LEARNING_RATE, args.epochs * len(train)),
            weight_decay=WEIGHT_DECAY,
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(train, epochs=args.epochs, shuffle=False, validation_data=test, verbose=2)

    keras.mixed_precision.set_global_policy("float32")
    final = build_network()
    final.set_weights(network.get_weights())
    final = scaled(final, np.concatenate([final(images)[0] for images, _ in test]))
    labels = np.concatenate([labels for _, labels in test])
    logits = np.concatenate([final(images)[1] for images, _ in test])
    print(f"test accuracy {np.mean(logits.argmax(1) == labels):.4f}")
    with atomic_path(args.out) as temporary:
        final.save(temporary)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB")
    return final


def scaled(network, features):
    """The network with its features on the scale where they vary by `TOTAL_VARIANCE`."""
    factor = float(np.sqrt(TOTAL_VARIANCE / features.var(0).sum()))
    features, logits = network.output
    return keras.Model(network.input, [layers.Rescaling(factor)(features), logits])


if __name__ == "__main__":
    main()
