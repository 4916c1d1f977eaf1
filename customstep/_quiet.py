"""Imports TensorFlow without the lines that it prints on standard error while it starts.

They come from C++, before any logging level is read, so the file descriptor itself is closed for
the time of the import. What it swallowed is printed after all if the import fails.
"""

import os
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what it says later on


def _import_quietly():
    sys.stderr.flush()
    standard_error = os.dup(2)
    with tempfile.TemporaryFile() as swallowed:
        os.dup2(swallowed.fileno(), 2)
        try:
            import tensorflow

            tensorflow.config.list_physical_devices()  # looks for a GPU, and complains
        except BaseException:
            swallowed.seek(0)
            os.write(standard_error, swallowed.read())
            raise
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)


if "tensorflow" not in sys.modules:
    _import_quietly()
