"""A learning rate that changes at every step, and what it is worth (R3: dynamic learning rates).

    python examples/scheduled_classifier.py             # the embedded Fashion-MNIST
    python examples/scheduled_classifier.py --smoke     # seconds: does it run at all?
    python examples/scheduled_classifier.py --schedule constant --out runs/constant
    python examples/scheduled_classifier.py --dataset fashion_mnist --out runs/all_images

In `runs/scheduled_classifier/` it leaves `training.png`, the rate and the accuracy over the steps,
and the model, `classifier.keras`. If killed, the same command resumes it.

Measured on two shared cores in bfloat16, seeds 0, 1, 2: 72 to 131 s, accuracy .895 .893 .896; at a
constant rate .879 .868 .881. All images, `assets/scheduled_classifier.png`: 381 s, .936 (seed 0).
"""

import customstep  # before keras: it keeps TensorFlow's start-up lines off the screen
import keras
import numpy as np
import tensorflow as tf
from customstep import scripts
from customstep.schedules import OneCycle, StepDecay, WarmupCosine
from customstep.templates import ScheduledClassifier
from keras import layers
from matplotlib.figure import Figure

BATCH_SIZE = 64  # images in a step
EPOCHS = 7  # 156 steps each on the embedded data set, 937 on the full one
LEARNING_RATE = 0.004  # the highest
WEIGHT_DECAY = 0.05  # AdamW's, in proportion to the rate
LABEL_SMOOTHING = 0.1  # the right class is to get 91 %, the others 1 % each
WIDTHS = (32, 48, 96)  # channels at 28, 14 and 7 pixels

SCHEDULES = {  # by name: functions of the number of steps
    "one_cycle": lambda steps: OneCycle(LEARNING_RATE, steps),
    "cosine": lambda steps: WarmupCosine(LEARNING_RATE, steps, warmup=0.1),
    "staircase": lambda steps: StepDecay(LEARNING_RATE, max(1, steps // 3)),
    "constant": lambda steps: StepDecay(LEARNING_RATE, steps),
}


def load_data(dataset, split, smoke):
    """Batches of `(images, one-hot labels)`, images `(28, 28, channels)` in [-1, 1]."""
    image_set = customstep.read_images(dataset, split, image_size=(28, 28))
    data = image_set.batches(BATCH_SIZE, shuffle=split == "train")
    data = data.map(lambda x, y: (x, tf.one_hot(y, len(image_set.class_names))))
    return data.take(3) if smoke else data


def convolution(filters, strides=1):
    return [
        layers.Conv2D(filters, 3, strides, padding="same", use_bias=False),
        layers.BatchNormalization(momentum=0.9),
        layers.ReLU(),
    ]


def build_network(channels, classes):
    """Images to logits; the first layer mirrors half of the images while they train."""
    first, second, third = WIDTHS
    return keras.Sequential(
        [
            keras.Input((28, 28, channels)),
            layers.RandomFlip("horizontal", dtype="float32"),
            *convolution(first),
            *convolution(second, strides=2),
            *convolution(second),
            *convolution(third, strides=2),
            *convolution(third),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(classes, dtype="float32"),
        ]
    )


def plot(path, rates, history, title):
    """The rates above the accuracies, over the steps; points are what an epoch ended with."""
    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    epochs = len(history["accuracy"])
    steps = np.arange(1, epochs + 1) * len(rates) // epochs
    above.plot(np.arange(len(rates)), rates, color="tab:red", label="the schedule")
    ends = history["learning_rate"]  # as the optimizer had it in the last step of each epoch
    above.plot(steps - 1, ends, "ko", markersize=4, clip_on=False, label="the optimizer's")
    above.set(ylabel="learning rate", ylim=(0, None))
    above.legend()
    below.plot(steps, history["accuracy"], "o-", markersize=4, label="training")
    below.plot(steps, history["val_accuracy"], "o-", markersize=4, label="test")
    below.set(xlabel="step", ylabel="accuracy")
    below.legend()
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    customstep.pictures.save_figure(path, figure)


def main(argv=None):
    parser = scripts.training_parser(__doc__, epochs=EPOCHS, out="runs/scheduled_classifier")
    parser.add_argument("--schedule", choices=SCHEDULES, default="one_cycle")
    args = scripts.begin(parser, argv)
    data = load_data(args.dataset, "train", args.smoke)
    test_data = load_data(args.dataset, "test", args.smoke)
    images, labels = data.element_spec
    network = build_network(images.shape[-1], labels.shape[-1])
    schedule_lr = SCHEDULES[args.schedule](args.epochs * len(data))

    classifier = ScheduledClassifier(inputs=network.inputs, outputs=network.outputs)
    classifier.compile(
        keras.optimizers.AdamW(weight_decay=WEIGHT_DECAY),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=LABEL_SMOOTHING),
        ["accuracy"],
        schedule_lr=schedule_lr,
    )
    resume = customstep.Resume(args.out / "checkpoints", **args.resuming)
    # `shuffle=False`, because the data set shuffles itself.
    history = classifier.fit(
        data, epochs=args.epochs, shuffle=False, validation_data=test_data, callbacks=[resume]
    )
    classifier.save(args.out / "classifier.keras")
    accuracy = history.history["val_accuracy"][-1]
    rates = np.array(schedule_lr(np.arange(args.epochs * len(data), dtype="float32")))
    title = f"{args.schedule} on {args.dataset}: test accuracy {accuracy:.3f}"
    plot(args.out / "training.png", rates, history.history, title)
    first, top, last = rates[0], rates.max(), rates[-1]
    print(f"Rate: {first:.2g} at first, {top:.2g} at step {rates.argmax()}, {last:.2g} at last")
    print(f"Test accuracy {accuracy:.3f}. The curves are in {args.out / 'training.png'}.")
    return history


if __name__ == "__main__":
    customstep.run(main)
