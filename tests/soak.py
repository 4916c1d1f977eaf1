"""Whether the tests are to try much, as `make soak` does, or a fair sample of it."""

import os

SOAK = os.environ.get("CUSTOMSTEP_SOAK") == "1"
