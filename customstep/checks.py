"""Checks that several modules share."""

import math
import numbers
import os

import numpy as np


def check_integer(name, value, low, high=math.inf):
    """Raises a `ValueError` unless `value` is a whole number from `low` to `high`."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or not low <= value <= high:
        limits = f" from {low} to {high}" if high < math.inf else f" at least {low}"
        example = 0 if low == -math.inf else low
        raise ValueError(
            f"`{name}` is out of its range. Expected a whole number"
            f"{'' if low == -math.inf else limits}; received {value!r}. "
            f"Pass, for example, {name}={example}."
        )


def check_number(name, value, interval):
    """Raises a `ValueError` unless `value` is a number in `interval`, such as "[0, 1)"."""
    low, high = map(float, interval[1:-1].split(","))
    inside = (
        isinstance(value, numbers.Real)
        and not isinstance(value, bool)
        and (low < value or (low == value and interval[0] == "["))
        and (value < high or (value == high and interval[-1] == "]"))
    )
    if not inside:
        raise ValueError(
            f"`{name}` is out of its range. Expected a number in {interval}; received {value!r}. "
            "Correct the number."
        )


def check_range(name, value):
    """Raises a `ValueError` unless `value` is two finite numbers, the lower one first."""
    pair = value if isinstance(value, (tuple, list, np.ndarray)) and len(value) == 2 else ()
    finite = [isinstance(one, numbers.Real) and math.isfinite(one) for one in pair]
    if not all(finite) or not pair[:1] < pair[1:]:
        raise ValueError(
            f"`{name}` is not a range. Expected two finite numbers, low < high; received "
            f"{value!r}. Pass (-1, 1) for images of a tanh, or (0, 1) for those of a sigmoid."
        )


def check_path(name, value):
    """Raises a `TypeError` or a `ValueError` unless `value` is the path of a file or folder."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(
            f"`{name}` is not a path. Expected a str or a `pathlib.Path`; received {value!r}. "
            f"Pass, for example, {name}='runs/1'."
        )
    if "\0" in os.fspath(value) or not os.fspath(value):
        raise ValueError(
            f"`{name}` is not a path. Expected the name of a file or folder; received {value!r}. "
            f"Pass, for example, {name}='runs/1'."
        )


def as_array(name, values):
    """What numpy makes of `values`; raises a `ValueError` where they are of no one shape."""
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(
            f"`{name}` is not an array. Expected rows of equal lengths; received one where {error} "
            "Make all rows as long as the others."
        ) from error
