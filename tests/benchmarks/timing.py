"""Timing two things against each other on a machine that is shared and noisy."""

import statistics
import time

import keras


class _Clock(keras.callbacks.Callback):
    """The time from the end of the first execution, of one step or several, to that of the last."""

    def __init__(self):
        super().__init__()
        self.ends = []

    def on_train_batch_end(self, batch, logs=None):
        self.ends.append(time.perf_counter())


def seconds(fit):
    """How long `fit(callbacks)` trains, its first step left out."""
    clock = _Clock()
    fit([clock])
    return clock.ends[-1] - clock.ends[0]


def ratios(ours, theirs, rounds):
    """`ours` against `theirs`, by turns, so that both meet the same weather.

    Args:
        ours: callable that returns seconds.
        theirs: callable that returns seconds.
        rounds: how often each is run; the order changes every round.

    Returns:
        The median of the ratios and their lower and upper quartile.
    """
    results = []
    for number in range(rounds):
        if number % 2:
            a = ours()
            b = theirs()
        else:
            b = theirs()
            a = ours()
        results.append(a / b)
    low, middle, high = statistics.quantiles(results, n=4)
    return middle, low, high
