"""How fast and how good a GAN gets: the guide's, ours with its networks, and our recipe.

    python -m tests.benchmarks.gan                  # speed, and where the time goes: 7 minutes
    python -m tests.benchmarks.gan --quality 120    # and what each makes of 120 seconds
    python -m tests.benchmarks.gan --quality 120 --dataset fashion_mnist --seeds 0 1 2

(a) is a `train_step` written by hand as Keras's guide teaches it ("Customizing what happens in
fit() with TensorFlow"), with its networks and settings; (b) is `OnePassGAN` with the same networks;
(c) is `examples/dcgan.py`. All train on the same images and take turns in one process.
"""

import argparse
import collections
import dataclasses
import functools
import glob
import math
import pathlib
import resource
import runpy
import statistics
import tempfile
import time
from collections.abc import Callable

import customstep  # before keras: it keeps TensorFlow's start-up lines off the screen
import keras
import tensorflow as tf
from customstep import OnePassGAN, datasets, evaluation, features, precision
from keras import layers
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from tests.benchmarks import timing

ROUNDS = 4
IMAGES = 7680  # trained on in a round
SAMPLES = 10_000  # images that are judged
EXAMPLE = pathlib.Path(__file__).parents[2] / "examples/dcgan.py"
POLICY = "mixed_bfloat16" if precision.has_fast_bfloat16() else "float32"


# -- What is compared -----------------------------------------------------------------------


class GuideGAN(keras.Model):
    """The algorithm of the guide: noisy labels, images generated for each network, no average."""

    def __init__(self, generator, discriminator, latent_dim):
        super().__init__()
        self.generator = generator
        self.discriminator = discriminator
        self.latent_dim = latent_dim
        self.noise = keras.random.SeedGenerator(0)
        self.means = [keras.metrics.Mean(name=f"{who}_loss") for who in ("d", "g")]

    def compile(self, d_optimizer, g_optimizer):
        super().compile()
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer
        self.loss_of = keras.losses.BinaryCrossentropy(from_logits=True)

    def train_step(self, data):
        images, _ = data
        n = tf.shape(images)[0]
        fake = self.generator(keras.random.normal((n, self.latent_dim), seed=self.noise))
        labels = tf.concat([tf.ones((n, 1)), tf.zeros((n, 1))], axis=0)
        labels += 0.05 * keras.random.uniform(tf.shape(labels), seed=self.noise)
        with tf.GradientTape() as tape:
            d_loss = self.loss_of(labels, self.discriminator(tf.concat([fake, images], axis=0)))
        weights = self.discriminator.trainable_weights
        self.d_optimizer.apply_gradients(zip(tape.gradient(d_loss, weights), weights))

        latents = keras.random.normal((n, self.latent_dim), seed=self.noise)
        with tf.GradientTape() as tape:
            g_loss = self.loss_of(tf.zeros((n, 1)), self.discriminator(self.generator(latents)))
        weights = self.generator.trainable_weights
        self.g_optimizer.apply_gradients(zip(tape.gradient(g_loss, weights), weights))
        for mean, loss in zip(self.means, (d_loss, g_loss)):
            mean.update_state(loss)
        return {mean.name: mean.result() for mean in self.means}


def guide_networks():
    """The guide's networks: 1.5 M and 0.1 M weights."""
    generator = keras.Sequential(
        [
            keras.Input((128,)),
            layers.Dense(7 * 7 * 128),
            layers.LeakyReLU(0.2),
            layers.Reshape((7, 7, 128)),
            layers.Conv2DTranspose(128, 4, strides=2, padding="same"),
            layers.LeakyReLU(0.2),
            layers.Conv2DTranspose(128, 4, strides=2, padding="same"),
            layers.LeakyReLU(0.2),
            layers.Conv2D(1, 7, padding="same"),
            layers.Activation("sigmoid", dtype="float32"),
        ],
        name="generator",
    )
    discriminator = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(64, 3, strides=2, padding="same"),
            layers.LeakyReLU(0.2),
            layers.Conv2D(128, 3, strides=2, padding="same"),
            layers.LeakyReLU(0.2),
            layers.GlobalMaxPooling2D(),
            layers.Dense(1, dtype="float32"),
        ],
        name="discriminator",
    )
    return generator, discriminator, 128


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of the three: how to make it for so many steps, on which data, and how it draws."""

    letter: str
    title: str
    policy: str
    batch_size: int
    image_range: tuple
    make: Callable
    samplers: tuple  # pairs: what is added to the name, and what draws the images

    @property
    def name(self):
        return f"({self.letter}) {self.title}, {self.policy}"

    def data(self, images, batch_size=None):
        return images.batches(batch_size or self.batch_size, image_range=self.image_range)

    def model(self, steps, seed=0):
        keras.utils.set_random_seed(seed)
        keras.mixed_precision.set_global_policy(self.policy)
        return self.make(steps)


def guide(steps):
    model = GuideGAN(*guide_networks())
    model.compile(keras.optimizers.Adam(3e-4), keras.optimizers.Adam(3e-4))
    return model


def sample_guide(model):
    latents = keras.random.normal((SAMPLES, model.latent_dim), seed=1)
    return model.generator.predict(latents, 500, verbose=0)


def ours_with_guide_networks(steps):
    model = OnePassGAN(*guide_networks(), image_range=(0, 1))
    adams = {who: keras.optimizers.Adam(3e-4) for who in ("discriminator", "generator")}
    model.compile(adams, steps_per_execution=8)
    return model


def recipe(steps):
    build_gan = runpy.run_path(str(EXAMPLE))["build_gan"]
    return build_gan(channels=1, num_classes=10, steps=steps, steps_per_execution=8)


def draw(model, **choice):
    return model.sample(SAMPLES, seed=1, **choice)


BY_HAND, PLAIN = (("", sample_guide),), (("", draw),)
CHOSEN = *PLAIN, (", best of 4", functools.partial(draw, best_of=4))
ENTRIES = (
    Entry("a", "the guide's step and networks", "float32", 64, (0, 1), guide, BY_HAND),
    Entry("b", "its networks, OnePassGAN", POLICY, 64, (0, 1), ours_with_guide_networks, PLAIN),
    Entry("c", "examples/dcgan.py", POLICY, 32, (-1, 1), recipe, CHOSEN),
)


# -- Speed ----------------------------------------------------------------------------------


def train(model, data, steps, callbacks=()):
    batches = data.repeat().take(steps)
    model.fit(batches, verbose=0, shuffle=False, callbacks=list(callbacks))


def seconds_per_step(model, data, steps=None):
    """The mean over so many steps, or over those that see `IMAGES`."""
    return timing.seconds_per_step(functools.partial(train, model, data, steps or _steps(data)))


def _steps(data):
    return IMAGES // data.element_spec[0].shape[0]


def compare_speed(images):
    """Images a second of each, by turns; returns the entries, each with its model and data."""
    runs = [(entry, entry.model(10_000), entry.data(images)) for entry in ENTRIES]
    rates = collections.defaultdict(list)
    for number in range(ROUNDS + 1):  # the first one traces
        for entry, model, data in runs if number % 2 else reversed(runs):
            rate = entry.batch_size / seconds_per_step(model, data)
            if number:
                rates[entry.name].append(rate)
    base = rates[runs[0][0].name]
    print("| run | batch | images/s | of (a), median (quartiles) |\n|---|---|---|---|")
    for entry, _, _ in runs:
        ratios = [rate / other for rate, other in zip(rates[entry.name], base)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rate = statistics.median(rates[entry.name])
        print(
            f"| {entry.name} | {entry.batch_size} | {rate:.0f} | {middle:.2f} "
            f"({low:.2f} to {high:.2f}) |",
            flush=True,
        )
    return runs


def operations(model, data):
    """Floating-point operations of the convolutions and dense layers of one step."""
    batch = next(iter(data))
    graph = tf.function(model.train_step, autograph=False).get_concrete_function(batch).graph
    return sum(_operations(op) for op in graph.get_operations())


def _operations(op):
    match op.type:
        case "Conv2D":
            return 2 * math.prod(op.outputs[0].shape) * math.prod(op.inputs[1].shape[:3])
        case "Conv2DBackpropInput":
            return 2 * math.prod(op.inputs[2].shape) * math.prod(op.inputs[1].shape[:3])
        case "Conv2DBackpropFilter":
            return 2 * math.prod(op.inputs[2].shape[:3]) * math.prod(op.outputs[0].shape)
        case "MatMul":
            inner = op.inputs[0].shape[0 if op.get_attr("transpose_a") else 1]
            return 2 * math.prod(op.outputs[0].shape) * inner
    return 0


@functools.cache
def convolution_peak(policy):
    """The best of some large 3x3 convolutions in its type, in operations a second."""
    dtype = tf.as_dtype(keras.DTypePolicy(policy).compute_dtype)
    peaks = []
    for size, channels in ((28, 64), (14, 128), (7, 256), (14, 256)):
        x = tf.cast(tf.random.normal((64, size, size, channels)), dtype)
        kernel = tf.cast(tf.random.normal((3, 3, channels, channels)) / channels, dtype)

        @tf.function
        def repeat(x, kernel=kernel):
            for _ in tf.range(20):
                x = tf.nn.conv2d(x, kernel, 1, "SAME")
            return x

        repeat(x)
        took = math.inf
        for _ in range(5):
            start = time.perf_counter()
            repeat(x).numpy()
            took = min(took, time.perf_counter() - start)
        peaks.append(20 * 2 * 64 * size**2 * 9 * channels**2 / took)
    return max(peaks)


KINDS = (
    "convolutions",
    "dense layers",
    "other layers",
    "optimizers",
    "losses, averages, noise",
)


def profile(model, data):
    """Seconds a step: a dict of those that each kind of operations takes, and those without any.

    Operations run two at a time at most. What a network, a tape or an optimizer does bears its
    name; the losses, the average of the generator and the noise are at the top level. Between
    operations are Python, and TensorFlow's own preparations.
    """
    seconds_per_step(model, data)
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        train(model, data, _steps(data))
        tf.profiler.experimental.stop()
        [path] = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        events = list(_events(pathlib.Path(path).read_bytes()))
    seconds = collections.Counter()
    idle, until = 0.0, min(start for _, start, _ in events)
    for kind, start, end in sorted(events, key=lambda event: event[1]):
        seconds[kind] += end - start
        idle += max(0.0, start - until)
        until = max(until, end)
    per_step = {kind: total / _steps(data) for kind, total in seconds.items()}
    return collections.Counter(per_step), idle / _steps(data)


def _events(recorded):
    """Yields the kind, the start and the end in seconds of every operation of a step."""
    space = xplane_pb2.XSpace()
    space.ParseFromString(recorded)
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                path, _, kind = plane.event_metadata[event.metadata_id].name.rpartition(":")
                if "PartitionedCall/" in path:
                    path = path.rpartition("PartitionedCall/")[2]
                    start = line.timestamp_ns / 1e9 + event.offset_ps / 1e12
                    yield _kind(path, kind), start, start + event.duration_ps / 1e12


def _kind(path, kind):
    if "Conv2D" in kind:
        return KINDS[0]
    if "MatMul" in kind:
        return KINDS[1]
    depth = path.removeprefix("gradient_tape/").count("/")
    if depth == 1:  # "generator/Sqrt_3", of the optimizer of that name
        return KINDS[3]
    return KINDS[2] if depth else KINDS[4]


def seconds_to_read(data, batches=2000):
    """Of one batch, where nothing else is done; the start of the reading is not among them."""
    batches_read = iter(data.repeat().take(batches + 1))
    next(batches_read)
    start = time.perf_counter()
    for _ in batches_read:
        pass
    return (time.perf_counter() - start) / batches


def print_profile(entry, model, data):
    peak = convolution_peak(entry.policy)
    step = seconds_per_step(model, data)
    work = operations(model, data)
    reading = seconds_to_read(data)
    print(f"\n{entry.name}: {1e3 * step:.2f} ms a step of {entry.batch_size} images")
    print(
        f"  {work / 1e9:.2f} G operations, at the peak of {peak / 1e9:.0f} G/s "
        f"{1e3 * work / peak:.2f} ms: the step takes {step * peak / work:.2f} times the limit"
    )
    spent, idle = profile(model, data)
    for kind in KINDS:
        share = spent[kind] / spent.total()
        print(f"  {kind:<24} {1e3 * spent[kind]:6.2f} ms of operations, {share:.0%} of them")
    print(f"  {'Python, between them':<24} {1e3 * idle:6.2f} ms, {idle / step:.1%} of the step")
    print(f"  {'input, made alone':<24} {1e3 * reading:6.2f} ms, {reading / step:.1%} of the step")


def print_scaling(entry, model, images):
    print("\nTime and batch:", end="", flush=True)
    for batch_size in (16, 32, 64, 128):
        data = entry.data(images, batch_size)
        seconds_per_step(model, data, 40)
        took = min(seconds_per_step(model, data, 120) for _ in range(3))
        print(f" {batch_size}: {1e3 * took:.1f} ms ({batch_size / took:.0f} images/s)", end=";")
    data = entry.data(images)
    print("\nMemory after more steps:", end="", flush=True)
    for number in range(5):
        seconds_per_step(model, data, 1000)
        print(f" {1000 * (number + 1):,}: {_memory():.0f} MB", end=";", flush=True)
    print()


def _memory():
    """Megabytes in use; where the system does not tell, the most there ever were."""
    if (told := pathlib.Path("/proc/self/statm")).exists():
        return int(told.read_text().split()[1]) * resource.getpagesize() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


# -- Quality --------------------------------------------------------------------------------


def compare_quality(args):
    """What each makes of `--quality` seconds of training; tracing is not among them."""
    network = args.network and keras.models.load_model(args.network)
    images = datasets.read_images(args.dataset, data_dir=args.data_dir)
    test = datasets.read_images(args.dataset, "test", data_dir=args.data_dir)
    real = features.extract(test.images, network)
    seen = features.extract(images.images, network)
    some = features.extract(images.images[:SAMPLES], network)
    print(
        f"\n{args.quality:.0f} s of training on {args.dataset}; {SAMPLES:,} images against "
        f"{len(test.labels):,} test images"
    )
    print(
        "| run | seed | time | images seen | Frechet | precision | recall | memorization | classes "
        "| as asked |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    _print_quality("real training images", "", "", "", evaluation.evaluate(some, real))
    for entry in (entry for entry in ENTRIES if entry.letter in args.runs):
        data = entry.data(images)
        probe = entry.model(10_000)
        seconds_per_step(probe, data)
        steps = int(args.quality / seconds_per_step(probe, data, 4 * _steps(data)))
        for seed in args.seeds:
            model = entry.model(steps, seed)
            took = timing.seconds(functools.partial(train, model, data, steps))
            classes = getattr(model, "num_classes", None)  # `sample` takes them in turn
            labels = [n % classes for n in range(SAMPLES)] if classes else None
            count = f"{steps * entry.batch_size:,}"
            for note, images_of in entry.samplers:
                made = features.extract(images_of(model), network, image_range=entry.image_range)
                found = evaluation.evaluate(made, real, train=seen, labels=labels)
                _print_quality(entry.name + note, seed, f"{took:.0f} s", count, found)


def _print_quality(name, seed, took, seen, found):
    values = {key: estimate.value for key, estimate in found.estimates.items()}
    shares = f"{min(found.class_shares):.3f} to {max(found.class_shares):.3f}"
    copies, asked = (
        f"{values[key]:.3f}" if key in values else "" for key in ("memorization", "class_accuracy")
    )
    print(
        f"| {name} | {seed} | {took} | {seen} | {values['frechet_distance']:.2f} | "
        f"{values['precision']:.3f} | {values['recall']:.3f} | {copies} | {shares} | {asked} |",
        flush=True,
    )


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quality", type=float, metavar="SECONDS", help="train each so long")
    parser.add_argument("--dataset", default="fashion_mini", help="a TFDS name or a folder")
    parser.add_argument("--data-dir", help="folder of TFDS's prepared data sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", default="abc", help="which of the three are judged")
    parser.add_argument("--network", help="of features; the bundled one by default")
    parser.add_argument("--no-speed", action="store_true", help="judge their images only")
    args = parser.parse_args(argv)
    if not args.no_speed:
        images = datasets.read_images(args.dataset, data_dir=args.data_dir)
        runs = compare_speed(images)
        for entry, model, data in runs:
            print_profile(entry, model, data)
        entry, model, _ = runs[-1]
        print_scaling(entry, model, images)
    if args.quality:
        compare_quality(args)


if __name__ == "__main__":
    main()
