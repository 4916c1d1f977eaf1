"""A small network that learns from a large one (R4: losses that `compile` lacks).

    python examples/distillation.py             # the embedded Fashion-MNIST
    python examples/distillation.py --smoke     # seconds: does it run at all?

A convolutional teacher learns from all images. A student of one hidden layer is then trained from
1,000 of them, by their labels alone and by what the teacher thinks of each, and once from the
teacher's answers to all images, from the same weights for as many steps. In `runs/distillation/` it
leaves `accuracies.png` and the students, `student_0.keras` to `student_2.keras`. If killed, the
same command resumes it.

Measured on two busy cores in bfloat16: 280 s in all. The teacher is right on 89.3 % of the test
images, the students on 79.5 % by labels alone, 80.0 % with the teacher's answers, 83.3 % by its
answers to all images (means of 5; spreads 0.3 to 0.5 %): `assets/distillation.png`.

Hinton, Vinyals and Dean 2015 (arXiv:1503.02531).
"""

import functools

import customstep  # before keras: it keeps TensorFlow's start-up lines off the screen
import keras
import numpy as np
from customstep import Distillation, StepModel, scripts
from customstep.schedules import LinearDecay
from keras import layers

IMAGES = 1000  # whose labels the students see
SEEDS = 5  # students of each kind
BATCH_SIZE = 50  # images in a step
TEACHER_EPOCHS = 6  # 200 steps each on the embedded data set
EPOCHS = 60  # of a student, 20 steps each; of all images fewer
LEARNING_RATE = 2e-3  # falling to 0 over the second half
TEMPERATURE = 4.0  # of the teacher's answers
STUDENTS = {  # by name: the weight of the labels, and of how many images
    "labels alone": (1.0, IMAGES),
    "labels and teacher": (0.1, IMAGES),
    "teacher, all images": (0.0, None),
}


def load_data(dataset, smoke):
    """`(images, labels)` to train on and to test with, images `(28, 28, channels)` in [0, 1]."""
    read = functools.partial(customstep.read_images, dataset, image_size=(28, 28))
    train, test = read(split="train"), read(split="test")
    count = IMAGES if smoke else None
    return [(one.images[:count] / np.float32(255), one.labels[:count]) for one in (train, test)]


def build_teacher(channels):
    x = images = keras.Input((28, 28, channels))
    for filters in (32, 64):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D()(layers.BatchNormalization()(x))
    x = layers.Dropout(0.4)(layers.Dense(128, activation="relu")(layers.Flatten()(x)))
    return StepModel(inputs=images, outputs=layers.Dense(10, dtype="float32")(x))


def build_student(channels):
    images = keras.Input((28, 28, channels))
    x = layers.Dense(64, activation="relu")(layers.Flatten()(images))
    return keras.Model(images, layers.Dense(10, dtype="float32")(x))


def main(argv=None):
    parser = scripts.training_parser(__doc__, epochs=EPOCHS, out="runs/distillation")
    args = scripts.begin(parser, argv)
    (x, y), test = load_data(args.dataset, args.smoke)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    training = dict(batch_size=BATCH_SIZE, verbose=0)

    teacher = build_teacher(x.shape[-1])
    epochs = 1 if args.smoke else TEACHER_EPOCHS
    schedule = LinearDecay(LEARNING_RATE, steps=epochs * -(-len(x) // BATCH_SIZE))
    teacher.compile("adam", loss, ["accuracy"], schedule_lr=schedule)
    resume = customstep.Resume(args.out / "checkpoints/teacher", **args.resuming)
    teacher.fit(x, y, epochs=epochs, callbacks=[resume], **training)
    best = 100 * teacher.evaluate(*test, verbose=0, return_dict=True)["accuracy"]
    print(f"teacher: {best:.1f} %", flush=True)

    results, steps = {name: [] for name in STUDENTS}, args.epochs * IMAGES // BATCH_SIZE
    for seed in range(args.seed, args.seed + (1 if args.smoke else SEEDS)):
        for number, (name, (weight, count)) in enumerate(STUDENTS.items()):
            keras.utils.set_random_seed(seed)
            student = build_student(x.shape[-1])
            arguments = dict(temperature=TEMPERATURE, hard_weight=weight)
            model = Distillation(student, teacher, **arguments)
            schedule = LinearDecay(LEARNING_RATE, steps=steps)
            model.compile("adam", loss, ["accuracy"], schedule_lr=schedule)
            resume = customstep.Resume(args.out / f"checkpoints/{number}_{seed}", **args.resuming)
            epochs = steps * BATCH_SIZE // len(x[:count])
            model.fit(x[:count], y[:count], epochs=epochs, callbacks=[resume], **training)
            accuracy = model.evaluate(*test, verbose=0, return_dict=True)["accuracy"]
            results[name].append(100 * accuracy)
            student.save(args.out / f"student_{number}.keras")
    for name, values in results.items():
        print(f"{name}: {np.mean(values):.1f} % on average, spread {np.std(values):.1f} %")
    label = "test accuracy of each student, and the mean, %"
    customstep.plot_runs(results, args.out / "accuracies.png", label, teacher=best)
    print(f"The picture is {args.out / 'accuracies.png'}.")
    return results


if __name__ == "__main__":
    customstep.run(main)
