"""What a second worker brings: images a second at a fixed batch for each, and the limit on paper.

    python -m tests.benchmarks.scaling

`customstep launch` starts one worker on one core, then two on two cores, by turns. Each has the same
part of a step, so two of them would ideally train twice as many images a second; what is missing
goes into the reduction of gradients and into waiting for the slower one. Then it prints what would bound the same step, and that of a larger network, on many GPUs (see `README.md`).
"""

import concurrent.futures
import json
import math
import os
import pathlib
import statistics
import sys
import tempfile
import time
from typing import NamedTuple

from customstep import GAN, files, launching  # isort: skip  (first: it keeps TF quiet)

import keras
import tensorflow as tf

from tests.benchmarks import step, timing

IMAGES = 3840  # trained by each worker
BATCHES = (32, 256)  # images in a worker's step
ROUNDS = 5


# -- Measured -------------------------------------------------------------------------------


def work(out, batch):
    """What one worker runs; the chief writes what was measured of all workers to `out`."""
    keras.utils.set_random_seed(0)
    workers = tf.distribute.get_strategy().num_replicas_in_sync
    gan, shape = _gan()
    steps = IMAGES // batch
    data = step.images(shape, batch * workers, steps)
    seconds = timing.seconds(
        lambda callbacks: gan.fit(data, verbose=0, shuffle=False, callbacks=callbacks)
    )
    trained = [sum(math.prod(v.shape) for v in update.variables) for update in gan.updates()]
    measured = {
        "images_per_second": workers * batch * (steps - 1) / seconds,
        "reduction_ms": {n: _reduction_ms(n) for n in (1, *trained)} if workers > 1 else {},
    }
    with files.atomic_path(out) as path:
        path.write_text(json.dumps(measured), encoding="utf-8")


def _reduction_ms(numbers, times=50):
    """How many milliseconds it takes to sum so many float32 numbers over all workers."""
    values = tf.ones([numbers])

    @tf.function
    def reduce():
        return tf.distribute.get_strategy().run(
            lambda: tf.distribute.get_replica_context().all_reduce("SUM", values)
        )

    reduce()
    started = time.perf_counter()
    for _ in range(times):
        reduce()
    return 1e3 * (time.perf_counter() - started) / times


def measure(workers, batch, cores):
    """What so many workers measure on the first so many of the cores."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores[:workers])
    try:
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "measured.json"
            if launching.launch(__file__, [str(out), str(batch)], workers):
                raise SystemExit("A worker failed; its message is above.")
            return json.loads(out.read_text(encoding="utf-8"))
    finally:
        os.sched_setaffinity(0, everywhere)


def measure_apart(batch, cores):
    """Images a second of two that train at once, each alone on its core, without the other."""
    with concurrent.futures.ThreadPoolExecutor() as pool:  # a thread has an affinity of its own
        pairs = pool.map(lambda core: measure(1, batch, [core]), cores[:2])
    return sum(one["images_per_second"] for one in pairs)


def _gan():
    generator, discriminator, latent_dim, shape = step.dcgan_networks()
    gan = GAN(generator, discriminator, latent_dim)
    gan.compile({name: keras.optimizers.Adam(3e-4, 0.5) for name in ("discriminator", "generator")})
    return gan, shape


# -- On paper -------------------------------------------------------------------------------


class Training(NamedTuple):
    """What one GPU does in one step.

    Attributes:
        name: for the table.
        parameters: all that are trained, whose gradients are reduced in float32.
        operations: floating-point operations, forward and backward.
        descents: in a step, each with a reduction of its own.
    """

    name: str
    parameters: int
    operations: float
    descents: int


# Assumed, not measured: an A100 at 40 % of its 312 TFLOP/s in bfloat16; 8 GPUs a machine, joined by
# NVLink; machines joined by one network card of 200 Gbit/s for each GPU; 5 us for a message.
OPERATIONS_PER_SECOND = 0.4 * 312e12
GPUS_A_MACHINE = 8
BYTES_PER_SECOND = {"machine": 200e9, "cluster": 25e9}
LATENCY = 5e-6


def reduction_seconds(parameters, descents, gpus):
    """How long the gradients of one step take to be summed over all GPUs.

    A ring moves 2 (n - 1) / n of the bytes over its slowest link (Patarasu and Yuan 2009,
    "Bandwidth optimal all-reduce algorithms for clusters of workstations"); a tree needs
    2 log2(n) messages one after the other.
    """
    link = BYTES_PER_SECOND["machine" if gpus <= GPUS_A_MACHINE else "cluster"]
    bandwidth = 2 * (gpus - 1) / gpus * 4 * parameters / link
    return bandwidth + descents * 2 * math.ceil(math.log2(gpus)) * LATENCY


def print_paper(trainings):
    print("\nOn paper: step = compute + reduction, nothing overlapped")
    print("| one GPU's step | reduced | compute | 8 GPUs | 64 GPUs | 1,024 GPUs |")
    print("|---|---|---|---|---|---|")
    for training in trainings:
        compute = training.operations / OPERATIONS_PER_SECOND
        cells = []
        for gpus in (8, 64, 1024):
            wait = reduction_seconds(training.parameters, training.descents, gpus)
            share = compute / (compute + wait)
            cells.append(f"+ {1e3 * wait:.2f} ms: {share:.0%} of ideal")
        print(
            f"| {training.name} | {4 * training.parameters / 1e6:.1f} MB "
            f"| {1e3 * compute:.2f} ms | {' | '.join(cells)} |"
        )


def dcgan(batch):
    """The step that is measured, on a batch of another size."""
    generator, discriminator, *_ = step.dcgan_networks()
    # A descent of D: G forward, D on real and on fake images forward and backward. One of G: both
    # forward, and backward. A backward pass costs two forward passes, or one through D if it is G
    # that descends.
    forward = {one: 2 * _multiplications(one) for one in (generator, discriminator)}
    operations = (1 + 3) * forward[generator] + (2 * 3 + 2) * forward[discriminator]
    trained = generator.trainable_variables + discriminator.trainable_variables
    parameters = sum(math.prod(variable.shape) for variable in trained)
    return Training(f"DCGAN 28 x 28, batch {batch}", parameters, batch * operations, 2)


def _multiplications(network):
    """Of one example in the dense and convolutional layers, forward."""
    total = 0
    for layer in network.layers:
        if isinstance(layer, keras.layers.Conv2DTranspose):
            total += math.prod(layer.kernel.shape) * math.prod(layer.input.shape[1:3])
        elif isinstance(layer, keras.layers.Conv2D):
            total += math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:3])
        elif isinstance(layer, keras.layers.Dense):
            total += math.prod(layer.kernel.shape)
    return total


# 25.6 M parameters, 4.1 G multiplications an image forward (He et al. 2016, table 1).
RESNET_50 = Training("ResNet-50, batch 256", 25_600_000, 256 * 3 * 2 * 4.1e9, 1)


def _ratio(ours, theirs):
    ratios = [a / b for a, b in zip(ours, theirs)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.2f} (quartiles {low:.2f} to {high:.2f})"


def main():
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("This needs two cores: one for each of two workers.")
    for batch in BATCHES:
        one, two, apart, reduction = [], [], [], {}
        for _ in range(ROUNDS):
            one.append(measure(1, batch, cores)["images_per_second"])
            measured = measure(2, batch, cores)
            two.append(measured["images_per_second"])
            apart.append(measure_apart(batch, cores))
            for numbers, ms in measured["reduction_ms"].items():
                reduction.setdefault(numbers, []).append(ms)
        print(
            f"DCGAN, {batch} images a worker and step: 1 worker {statistics.median(one):.0f} "
            f"images/s; 2 workers {statistics.median(two):.0f}, {_ratio(two, one)} times as many; 2 "
            f"that do not train in step {statistics.median(apart):.0f}, {_ratio(apart, one)} times; "
            "ideal 2 times",
            flush=True,
        )
    for numbers, ms in reduction.items():
        print(f"sum of {int(numbers):,} numbers over 2 workers: {statistics.median(ms):.1f} ms")
    print_paper([dcgan(32), dcgan(4096), RESNET_50])


if __name__ == "__main__":
    if len(sys.argv) > 1:  # as `measure` launches it
        work(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
