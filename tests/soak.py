"""How much the tests try: a fair sample, or with CUSTOMSTEP_SOAK=1, as `make soak` sets it, all."""

import os

from hypothesis import HealthCheck, settings

SOAK = os.environ.get("CUSTOMSTEP_SOAK") == "1"

# For properties of any input: the same inputs in every run.
repeatable = settings(
    max_examples=2000 if SOAK else 25,
    deadline=None,
    derandomize=True,
    database=None,
    # What fixtures give is the same for every example, and may be.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
