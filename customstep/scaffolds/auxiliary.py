"""A model of my own with a second task beside the one that counts.

    python my_model.py --smoke     # a few steps: does it run at all?
    python my_model.py             # the whole training; its curves are in runs/my_model
"""

import customstep
import keras
from customstep import scripts
from customstep.schedules import LinearDecay
from keras import layers


def load_data(dataset, split, smoke):
    """Batches `(images, targets by output)` of a TFDS data set or a folder of images."""
    data = customstep.read_images(dataset, split, image_size=(28, 28)).batches(64)
    data = data.map(lambda x, y: (x, {"classes": y, "restored": x}))  # your targets
    return data.take(4) if smoke else data


def build_model(channels, classes):
    """Images to the classes, and to the images again; what both share learns from both."""
    x = images = keras.Input((28, 28, channels))
    for filters in (32, 64):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
    code = layers.Dense(128, activation="relu")(layers.Flatten()(x))
    restored = layers.Dense(28 * 28 * channels, dtype="float32")(code)
    outputs = {
        "classes": layers.Dense(classes, dtype="float32")(code),
        "restored": layers.Reshape((28, 28, channels), dtype="float32")(restored),
    }
    return customstep.AuxiliaryLoss(inputs=images, outputs=outputs, main="classes")


def main(argv=None):
    parser = scripts.training_parser(__doc__, epochs=5, out="runs/my_model")
    args = scripts.begin(parser, argv)
    data, test = (load_data(args.dataset, split, args.smoke) for split in ("train", "test"))
    model = build_model(data.element_spec[0].shape[-1], classes=10)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        "adam",
        {"classes": cross_entropy, "restored": "mse"},
        {"classes": "accuracy"},
        # A number, or a function of the step: here the second task fades out.
        loss_weights={"restored": LinearDecay(0.5, steps=args.epochs * len(data))},
    )
    resume = customstep.Resume(args.out / "checkpoints", **args.resuming)
    training = dict(epochs=args.epochs, shuffle=False, validation_data=test)
    history = model.fit(data, callbacks=[resume], **training)
    model.save(args.out / "model.keras")  # `model.main_model()` is the first output alone
    customstep.plot_history(history, args.out / "history.png")
    return history


if __name__ == "__main__":
    customstep.run(main)
