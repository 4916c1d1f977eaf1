"""A trained network of my own under a new head: first the head alone, then the rest.

    python my_model.py --smoke     # a few steps: does it run at all?
    python my_model.py             # the whole training; its curves are in runs/my_model
"""

import customstep
import keras
from customstep import scripts
from keras import layers

BATCH_SIZE = 64  # images in a step


def load_data(dataset, split, smoke):
    """Batches `(images, labels)`, images in [-1, 1], of a TFDS data set or a folder of images."""
    images = customstep.read_images(dataset, split, image_size=(28, 28))
    data = images.batches(BATCH_SIZE, shuffle=split == "train")
    return data.take(4) if smoke else data


def build_stem(channels):
    """The trained network: here one of random weights, in its place yours from `load_model`."""
    x = images = keras.Input((28, 28, channels))
    for filters in (32, 64):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
    return keras.Model(images, layers.Flatten()(x), name="stem")


def build_model(stem, classes):
    """`freeze` takes patterns of names; `selection.Part` is a part of a weight."""
    head = layers.Dense(classes, dtype="float32", name="head")(stem.output)
    model = keras.Model(stem.input, head)
    frozen = [f"{layer.name}/*" for layer in stem.layers if layer.weights]
    return customstep.PartiallyFrozen(inputs=model.input, outputs=model.output, freeze=frozen)


def main(argv=None):
    parser = scripts.training_parser(__doc__, epochs=4, out="runs/my_model")
    args = scripts.begin(parser, argv)
    data, test = (load_data(args.dataset, split, args.smoke) for split in ("train", "test"))
    model = build_model(build_stem(data.element_spec[0].shape[-1]), classes=10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, ["accuracy"])
    resume = customstep.Resume(args.out / "checkpoints", **args.resuming)
    thaw = customstep.Unfreeze({args.epochs // 2: "*"})  # from the middle on, all of it
    training = dict(epochs=args.epochs, shuffle=False, validation_data=test)
    history = model.fit(data, callbacks=[resume, thaw], **training)
    model.save(args.out / "model.keras")
    customstep.plot_history(history, args.out / "history.png")
    return history


if __name__ == "__main__":
    customstep.run(main)
