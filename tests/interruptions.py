"""Runs that are ended in the middle, for the tests of what they go on from."""

import keras

from customstep import Resume


class Killed(BaseException):
    """What no one catches, as little as a process hears of SIGKILL."""


def kill_after(steps):
    """A callback that ends the training after so many steps of this process."""
    left = iter(range(steps - 1))

    def end_step(batch, logs):
        if next(left, None) is None:
            raise Killed

    return keras.callbacks.LambdaCallback(on_train_batch_end=end_step)


def interrupted(make, train, directory, *, steps=5, every=1):
    """Trains with a fresh model again and again, killed after a few steps, until it ends.

    Args:
        make: callable of a seed that makes the model; the first one is 0, and counts.
        train: callable of the model and of callbacks that fits it.
        directory: of the checkpoints.
        steps: after how many steps of its own a process is killed.
        every: as for `Resume`.

    Returns:
        The last model, and what `train` returned.
    """
    for seed in range(20):
        model = make(seed)
        try:
            return model, train(model, [Resume(directory, every=every), kill_after(steps)])
        except Killed:
            continue
    raise AssertionError("it never ended")
