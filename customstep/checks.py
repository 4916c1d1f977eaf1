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
