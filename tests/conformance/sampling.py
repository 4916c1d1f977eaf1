"""On which templates a test is tried, where it is not tried on all; `make soak` tries all."""

import pytest

from tests.descriptors import DESCRIPTORS
from tests.soak import SOAK, by_turns


def sample(first=0, step=3):
    """All descriptors; or, where not all is tried, every `step`-th one from `first` on."""
    return DESCRIPTORS if SOAK else DESCRIPTORS[first::step]


def some(first=0):
    """Marks a test to run on every third descriptor, beginning with one of the first three."""
    return pytest.mark.parametrize(
        "descriptor", sample(first), ids=lambda descriptor: descriptor.name
    )


def in_turns(name, modes):
    """Marks a test to run on every descriptor, each in one of the modes.

    Args:
        name: of the test's argument that is a mode.
        modes: list, or dict of what the id is to what the argument is.
    """
    values = modes if isinstance(modes, dict) else {str(mode): mode for mode in modes}
    pairs = [
        pytest.param(descriptor, values[mode], id=f"{descriptor.name}-{mode}")
        for descriptor, mode in by_turns(DESCRIPTORS, list(values))
    ]
    return pytest.mark.parametrize(f"descriptor, {name}", pairs)
