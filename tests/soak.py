"""How much the tests try: a fair sample, or with CUSTOMSTEP_SOAK=1, as `make soak` sets it, all."""

import os

from hypothesis import HealthCheck, settings

SOAK = os.environ.get("CUSTOMSTEP_SOAK") == "1"


def by_turns(cases, modes):
    """All pairs of a case and a mode; or, where not all is tried, each case with one mode.

    Args:
        cases: sequence.
        modes: sequence, of which the cases take one after the other.

    Returns:
        List of `(case, mode)`.
    """
    if SOAK:
        return [(case, mode) for case in cases for mode in modes]
    return [(case, modes[number % len(modes)]) for number, case in enumerate(cases)]


# For properties of any input: the same inputs in every run.
repeatable = settings(
    max_examples=2000 if SOAK else 25,
    deadline=None,
    derandomize=True,
    database=None,
    # What fixtures give is the same for every example, and may be.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
