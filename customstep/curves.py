"""Pictures of numbers: the curves of a run, drawn from what `fit` returns, and several runs."""

import itertools
import math
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from customstep import pictures

__all__ = ["plot_history", "plot_runs"]

_RATE = "learning_rate"


def plot_history(history, path, *, title=None):
    """Draw every metric of a training run over its epochs, as one PNG file 800 pixels wide.

    A metric and its `val_` twin share a panel, and so do all learning rates, on a logarithmic
    scale where they differ tenfold. Values that are not finite are gaps. The same history gives
    the same bytes. It needs no display, and leaves the settings and figures of matplotlib alone.

    Args:
        history: what `fit` returns, or its dict `{name: values}` of one number an epoch. A metric
            with fewer values (`fit(validation_freq=2)`) is placed at the epochs that Keras
            evaluates, the multiples of the frequency.
        path: the PNG file; it appears whole or not at all.
        title: text above all panels, or None.

    Raises:
        TypeError: `history` is neither.
        ValueError: there is nothing to draw, or values are not one number an epoch.
        OSError: the file cannot be written.

    Example:

        history = gan.fit(images, epochs=10)
        plot_history(history, "runs/curves.png", title="GAN on Fashion-MNIST")
    """
    curves = _curves(history)
    epochs = np.concatenate([epochs for epochs, _ in curves.values()])
    panels = _panels(curves)
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(8, 2.5 * rows + (0.4 if title else 0)), dpi=100, layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    for place, (name, panel) in enumerate(panels.items()):
        row, column = divmod(place, columns)
        last = place == len(panels) - 1  # and takes what is left of its row
        axes = figure.add_subplot(grid[row, column:] if last else grid[row, column])
        _draw(axes, name, panel)
        axes.set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)
    if title:
        figure.suptitle(title)
    pictures.save_figure(path, figure)


def plot_runs(results, path, label, **references):
    """Draw what several kinds of runs ended with, as one PNG file: points, and bars at the means.

    Args:
        results: dict of a kind's name to its numbers, one for each run, such as those of seeds.
        path: the PNG file; it appears whole or not at all.
        label: what the numbers are, with their unit.
        **references: numbers to compare with, by name, drawn as dashed lines.

    Raises:
        ValueError: there is nothing to draw, or values are no numbers.
        OSError: the file cannot be written.

    Example:

        plot_runs({"plain": [81.2, 81.9], "mixup": [82.4, 82.2]}, "runs.png", "accuracy, %")
    """
    results = {name: _numbers(name, values) for name, values in results.items()}
    if not all(map(len, results.values())) or not results:
        raise ValueError(
            f"There is nothing to draw. Expected at least one number for each kind of run; "
            f"received {results}. Train first, and leave out what has no result."
        )
    figure = Figure(figsize=(6.4, 1.6 + 0.5 * len(results)), dpi=100, layout="constrained")
    axes = figure.subplots()
    for row, values in enumerate(results.values()):
        axes.plot(values, [row] * len(values), f"C{row}o", alpha=0.5)
        axes.plot(values.mean(), row, f"C{row}|", markersize=18, markeredgewidth=3)
    for name, value in references.items():
        axes.axvline(value, color="gray", linestyle="--", label=name)
    axes.set_yticks(range(len(results)), results)
    axes.set(xlabel=label, ylim=(len(results) - 0.5, -0.5))
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if references:
        axes.legend()
    pictures.save_figure(path, figure)


def _curves(history):
    """The curves of a history, `{name: (epochs, values)}`: float arrays of equal length."""
    logs = getattr(history, "history", history)
    if not isinstance(logs, Mapping):
        raise TypeError(
            f"This is not a history. Expected what `fit` returns, or its dict of names to values; "
            f"received {type(history).__name__}. Pass `history = model.fit(...)`."
        )
    values = {name: _numbers(name, logged) for name, logged in logs.items()}
    length = max(map(len, values.values()), default=0)
    if not length:
        raise ValueError(
            f"The history is empty. Expected at least one metric of one epoch; received "
            f"{dict(logs)}. Train for an epoch first, and pass what `fit` returned."
        )
    epochs = np.arange(1, length + 1)
    if len(getattr(history, "epoch", ())) == length:  # a run may begin at a later epoch
        epochs = np.asarray(history.epoch) + 1
    return {name: (_evaluated(name, epochs, len(v)), v) for name, v in values.items()}


def _numbers(name, logged):
    try:
        values = np.asarray(logged, dtype=float)
    except (TypeError, ValueError):
        values = np.asarray(logged, dtype=object)
    if values.ndim != 1 or values.dtype == object:
        raise ValueError(
            f"The values of '{name}' make no curve. Expected one number an epoch; received "
            f"{logged!r}. Leave '{name}' out of the dict, or reduce it to one number."
        )
    return values


def _evaluated(name, epochs, count):
    """The epochs at which a metric of `count` values was evaluated, as `validation_freq` has it."""
    for frequency in range(1, epochs[-1] + 2):
        chosen = epochs[epochs % frequency == 0]
        if len(chosen) == count:
            return chosen
    raise ValueError(
        f"The values of '{name}' fit no epochs. Expected {len(epochs)} of them, or one every few "
        f"epochs; received {count}. Fill the epochs without a value with NaN."
    )


def _panels(curves):
    """What is drawn together, `{title: {label: curve}}`, learning rates last."""
    panels, rates = {}, {}
    for name, curve in curves.items():
        if name.startswith(_RATE):
            rates[name.removeprefix(_RATE).removeprefix("_")] = curve
        else:
            label = "validation" if name.startswith("val_") else "training"
            panels.setdefault(name.removeprefix("val_"), {})[label] = curve
    return {**panels, _RATE: rates} if rates else panels


def _draw(axes, name, curves):
    for style, (label, (epochs, values)) in zip(itertools.cycle(["-", "--", ":"]), curves.items()):
        finite = np.isfinite(values)
        # A point between two gaps makes no line, so it is a dot.
        beside = np.pad(finite, 1)[:-2] | np.pad(finite, 1)[2:]
        lone = finite & ~beside
        (line,) = axes.plot(epochs, np.where(finite, values, np.nan), style, label=label)
        axes.plot(epochs[lone], values[lone], "o", color=line.get_color(), markersize=4)
    values = np.concatenate([values[np.isfinite(values)] for _, values in curves.values()])
    if name == _RATE and values.size and 0 < 10 * values.min() <= values.max():
        axes.set_yscale("log")
    axes.set_title(name)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if list(curves) not in (["training"], [""]):
        axes.legend()
