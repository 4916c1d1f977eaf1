"""A classifier of my own, with a learning rate that changes at every step.

    python my_model.py --smoke     # a few steps: does it run at all?
    python my_model.py             # the whole training; its curves are in runs/my_model
"""

import customstep
import keras
from customstep import scripts
from customstep.schedules import WarmupCosine
from keras import layers

BATCH_SIZE = 64  # images in a step
LEARNING_RATE = 2e-3  # the highest


def load_data(dataset, split, smoke):
    """Batches `(images, labels)`, images in [-1, 1], of a TFDS data set or a folder of images."""
    images = customstep.read_images(dataset, split, image_size=(28, 28))
    data = images.batches(BATCH_SIZE, shuffle=split == "train")
    return data.take(4) if smoke else data


def build_network(channels, classes):
    """Images to logits: no softmax at the end. Any Keras model will do."""
    x = images = keras.Input((28, 28, channels))
    for filters in (32, 64):
        x = layers.MaxPooling2D()(layers.Conv2D(filters, 3, activation="relu")(x))
    x = layers.Dropout(0.3)(layers.Flatten()(x))
    return keras.Model(images, layers.Dense(classes, dtype="float32")(x))


def main(argv=None):
    parser = scripts.training_parser(__doc__, epochs=5, out="runs/my_model")
    args = scripts.begin(parser, argv)
    data, test = (load_data(args.dataset, split, args.smoke) for split in ("train", "test"))
    network = build_network(data.element_spec[0].shape[-1], classes=10)
    model = customstep.ScheduledClassifier(inputs=network.input, outputs=network.output)
    model.compile(
        "adam",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        ["accuracy"],
        # Any function of the step: `lambda step: 1e-3 * 0.5 ** (step // 1000)`.
        schedule_lr=WarmupCosine(LEARNING_RATE, steps=args.epochs * len(data)),
    )
    resume = customstep.Resume(args.out / "checkpoints", **args.resuming)
    training = dict(epochs=args.epochs, shuffle=False, validation_data=test)
    history = model.fit(data, callbacks=[resume], **training)
    model.save(args.out / "model.keras")
    customstep.plot_history(history, args.out / "history.png")
    return history


if __name__ == "__main__":
    customstep.run(main)
