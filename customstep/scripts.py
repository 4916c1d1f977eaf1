"""What a script that is run from the command line needs: a user's mistake is one line.

    parser = scripts.Parser(description=__doc__)
    parser.add_argument("--epochs", type=scripts.whole(1), default=8)
    parser.add_argument("--out", type=scripts.folder, default="runs/mine")
    parser.add_argument("--seed", type=scripts.seed, default=0)
    ...
    if __name__ == "__main__":
        customstep.run(main)
"""

import argparse
import math
import os
import pathlib
import sys

__all__ = ["Parser", "folder", "run", "seed", "whole"]


def run(main, *, prog=None, mistakes=()):
    """Calls the `main` of a script; a mistake of its user is one line, a bug keeps its traceback.

    A mistake is what the machine refuses, such as a file that cannot be written or memory that is
    not there, and a `ValueError`, `TypeError` or `OSError` that this package raises: its messages
    say what to change. Everything else passes through.

    Args:
        main: callable without arguments; what it returns is dropped.
        prog: the name of the script in the line; None for that of `sys.argv[0]`.
        mistakes: tuple of further exceptions that are the user's, wherever they come from.

    Raises:
        SystemExit: code 2 after a mistake, which one line on standard error explains.

    Example:

        if __name__ == "__main__":
            customstep.run(main)
    """
    try:
        main()
    except Exception as error:
        if not isinstance(error, mistakes) and not _is_mistake(error):
            raise
        prog = pathlib.Path(sys.argv[0]).name if prog is None else prog
        print(f"{prog}: error: {_line(error)}", file=sys.stderr)
        sys.exit(2)


def whole(low, high=math.inf):
    """The `type` of an option that is a whole number.

    Args:
        low, high: its limits, both included.

    Returns:
        Callable for `argparse`, which makes an int of a word or says what it expected.

    Example:

        parser.add_argument("--epochs", type=whole(1), default=8)
    """

    def parse(text):
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            limits = f"at least {low}" if high == math.inf else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(
                f"expected a whole number, {limits}; received '{text}'"
            )
        return value

    return parse


def seed(text):
    """The `type` of an option that `keras.utils.set_random_seed` takes: an int of 32 bits."""
    return whole(0, 2**32 - 1)(text)


def folder(text):
    """The `type` of an option that is a folder to write to, which is there or can be made.

    Example:

        parser.add_argument("--out", type=folder, default="runs/mine")
    """
    path = pathlib.Path(text)
    nearest = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
    if "\0" in text or not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise argparse.ArgumentTypeError(
            f"expected a folder that exists or can be made, and written to; received '{text}'"
        )
    return path


class Parser(argparse.ArgumentParser):
    """A parser that keeps the line breaks of its texts, and explains a mistake in one line."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


def _is_mistake(error):
    """Whether an exception is the user's mistake."""
    if isinstance(error, OSError) and (error.filename is not None or error.errno is not None):
        return True
    if isinstance(error, MemoryError):
        return True
    traceback = error.__traceback__
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    raised_in = traceback.tb_frame.f_globals.get("__name__", "")
    ours = raised_in.split(".")[0] == __name__.split(".")[0]
    return ours and isinstance(error, (OSError, TypeError, ValueError))


def _line(error):
    return " ".join(str(error).split()) or type(error).__name__
