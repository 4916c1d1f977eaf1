"""What a script that is run from the command line needs: a user's mistake is one line.

    def main(argv=None):
        parser = scripts.training_parser(__doc__, epochs=8, out="runs/mine")
        args = scripts.begin(parser, argv)  # --epochs, --out, --seed and more are read
        ...

    if __name__ == "__main__":
        customstep.run(main)
"""

import argparse
import math
import os
import pathlib
import sys

import keras

from customstep import precision

__all__ = ["Parser", "begin", "folder", "run", "seed", "training_parser", "whole"]


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


def training_parser(description, *, epochs, out, dataset="fashion_mini"):
    """A parser with the options of a script that trains; add those of your own.

    Args:
        description: the script's docstring.
        epochs, out, dataset: the defaults of the options of these names.

    Returns:
        `Parser` for `begin`.
    """
    parser = Parser(description=description)
    parser.add_argument(
        "--dataset", default=dataset, help="a TFDS name; or a folder, which has no test split"
    )
    parser.add_argument("--epochs", type=whole(1), default=epochs)
    parser.add_argument("--out", type=folder, help=f"default: {out}")
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--fresh", action="store_true", help="start over, rather than go on")
    parser.add_argument("--smoke", action="store_true", help="a few steps: does it run at all?")
    parser.set_defaults(default_out=out)
    return parser


def begin(parser, argv=None, *, dtype_policy=None):
    """Reads the options, seeds Keras, and computes in bfloat16 where that is fast.

    Args:
        parser: what `training_parser` returned.
        argv: list of words; None for those of the command line.
        dtype_policy: name for Keras; None for "mixed_bfloat16" where that is fast, else "float32".

    Returns:
        `argparse.Namespace` of `dataset`, `epochs` (2 in a smoke test), `out`, `seed`,
        `fresh` and `smoke`, and `resuming`, the arguments of `customstep.Resume` after its folder.
    """
    args = parser.parse_args(argv)
    args.out = args.out or pathlib.Path(args.default_out + "_smoke" * args.smoke)
    args.epochs = 2 if args.smoke else args.epochs
    configuration = {"dataset": args.dataset, "seed": args.seed}
    args.resuming = dict(fresh=args.fresh, configuration=configuration)
    keras.utils.set_random_seed(args.seed)
    if dtype_policy is None:
        dtype_policy = "mixed_bfloat16" if precision.has_fast_bfloat16() else "float32"
    keras.mixed_precision.set_global_policy(dtype_policy)
    return args


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
