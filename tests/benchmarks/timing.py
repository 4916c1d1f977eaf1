"""Timing two things against each other on a machine that is shared and noisy."""

import statistics
import time

import keras


class _Clock(keras.callbacks.Callback):
    """When each execution, of one step or several, ended, and with which step."""

    def __init__(self):
        super().__init__()
        self.ends = []

    def on_train_batch_end(self, batch, logs=None):
        self.ends.append((batch, time.perf_counter()))


def seconds(fit):
    """How long `fit(callbacks)` trains, its first execution left out."""
    (_, start), *_, (_, stop) = _ends(fit)
    return stop - start


def seconds_per_step(fit):
    """The mean over the steps of `fit(callbacks)`, its first execution left out."""
    (first, start), *_, (last, stop) = _ends(fit)
    return (stop - start) / (last - first)


def _ends(fit):
    clock = _Clock()
    fit([clock])
    return clock.ends


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
