"""Checks that several modules share."""

import math
import numbers


def check_integer(name, value, low, high=math.inf):
    """Raises a `ValueError` unless `value` is a whole number from `low` to `high`."""
    if not isinstance(value, numbers.Integral) or not low <= value <= high:
        limits = f"at least {low}" if high == math.inf else f"from {low} to {high}"
        raise ValueError(
            f"`{name}` is out of its range. Expected a whole number {limits}; received {value!r}. "
            f"Pass, for example, {name}={low}."
        )


def check_number(name, value, interval):
    """Raises a `ValueError` unless `value` is a number in `interval`, such as "[0, 1)"."""
    low, high = map(float, interval[1:-1].split(","))
    inside = (
        isinstance(value, numbers.Real)
        and (low < value or (low == value and interval[0] == "["))
        and (value < high or (value == high and interval[-1] == "]"))
    )
    if not inside:
        raise ValueError(
            f"`{name}` is out of its range. Expected a number in {interval}; received {value!r}. "
            "Correct the number."
        )
