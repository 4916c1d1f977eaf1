"""What exact resume costs at its default interval.

    python -m tests.benchmarks.resume

The same model trains with `Resume` and without, by turns. Because the ratio of two runs is noisier
than what it is to show, the time that passes in the callback itself is printed, too, as a share of
the run it is in. On two shared cores it printed 1.28 % for the DCGAN (at most 1.44 %) and 1.13 %
for the tiny GAN (at most 1.32 %), beside ratios with quartiles from 0.96 to 1.01 that show no cost;
a checkpoint took as long as 2.7 steps of the DCGAN.
"""

import pathlib
import statistics
import tempfile
import time

from customstep import Resume  # isort: skip  (first: it keeps TensorFlow quiet)

import keras

from tests.benchmarks import step, timing


class Timed(Resume):
    """`Resume` that adds up the time it takes, and keeps that of each checkpoint."""

    taken = 0.0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.writes = []

    def on_train_batch_end(self, batch, logs=None):
        began = time.perf_counter()
        super().on_train_batch_end(batch, logs)
        self.taken += time.perf_counter() - began

    def _write(self):
        began = time.perf_counter()
        super()._write()
        self.writes.append(time.perf_counter() - began)


def compare(name, networks, batch_size, steps, rounds):
    model, _, shape = step.gan_pair(networks)
    data = step.images(shape, batch_size, steps)
    model.fit(data.take(3), verbose=0, shuffle=False)  # trace
    shares = []

    def run(*more):
        return timing.seconds(
            lambda callbacks: model.fit(
                data, verbose=0, shuffle=False, callbacks=[*more, *callbacks]
            )
        )

    def resumable():
        with tempfile.TemporaryDirectory() as folder:
            model.resumed = None  # another run of the same model
            resume = Timed(folder)
            seconds = run(resume)
        shares.append(resume.taken / seconds)
        return seconds

    middle, low, high = timing.ratios(resumable, run, rounds)
    print(
        f"{name}: {middle:.3f} of a run without (quartiles {low:.3f} to {high:.3f}); "
        f"{statistics.median(shares):.2%} of the time in the callback (at most {max(shares):.2%})",
        flush=True,
    )


def one_checkpoint():
    """The time of one checkpoint, in steps."""
    model, _, shape = step.gan_pair(step.dcgan_networks)
    data = step.images(shape, 32, 20)
    seconds = timing.seconds(
        lambda callbacks: model.fit(data, verbose=0, shuffle=False, callbacks=callbacks)
    )
    with tempfile.TemporaryDirectory() as folder:
        resume = Timed(folder, every=2)
        model.fit(data, verbose=0, shuffle=False, callbacks=[resume])
        size = sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*.*"))
    print(
        f"a checkpoint of the DCGAN ({size / 2e6:.1f} MB) takes as long as "
        f"{statistics.median(resume.writes) / (seconds / 19):.1f} steps"
    )


def main():
    keras.utils.set_random_seed(0)
    compare("GAN, DCGAN 28x28, batch 32", step.dcgan_networks, 32, 600, rounds=6)
    compare("GAN, tiny, batch 16", step.tiny_networks, 16, 6000, rounds=6)
    one_checkpoint()


if __name__ == "__main__":
    main()
