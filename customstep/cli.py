"""The console script `customstep`: one function for each of its commands.

A command is a function that adds its parser to the others and names, as `run`, the function that
does the work; `COMMANDS` lists them. What a user can get wrong is raised as a `ValueError` or an
`OSError`, which `scripts.run` turns into one line and exit code 2. A script that is launched is
the user's own, and keeps the traceback of what is not raised here.
"""

import argparse
import contextlib
import functools
import math
import os
import pathlib
import re
import sys
import textwrap
import warnings

import keras
import numpy as np

from customstep import (
    __version__,
    datasets,
    features,
    grids,
    latents,
    launching,
    pictures,
    saving,
    scaffolding,
)
from customstep.evaluation import evaluate
from customstep.files import atomic_path
from customstep.inspection import inspect
from customstep.scripts import Parser, run, whole

__all__ = ["main"]

_BLOCK = 1024  # images held as floats at once


def main(argv=None):
    """Runs one command of `customstep`.

    Args:
        argv: list of str, the words after `customstep`; None takes them from the command line.

    Raises:
        SystemExit: code 0 after `--help` or `--version`, 2 after a mistake, which one line on
            standard error explains.

    Example:

        main(["grid", "gan.keras", "--out", "runs/grid.png"])
    """
    parser = Parser(
        prog="customstep",
        description="Look at models that were trained with customstep, and train on many processes.",
        epilog="'customstep COMMAND --help' describes a command and gives examples.",
    )
    parser.add_argument("--version", action="version", version=f"customstep {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add_command in COMMANDS:
        add_command(commands)
    arguments = parser.parse_args(argv)
    prog = arguments.parser.prog
    if arguments.run is _run_launch:
        run(lambda: arguments.run(arguments), prog=prog)
        return
    with warnings.catch_warnings():
        warnings.showwarning = functools.partial(_show_warning, prog)
        run(lambda: arguments.run(arguments), prog=prog, mistakes=(OSError, ValueError))


def _show_warning(prog, message, *_, **__):
    print(f"{prog}: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _grid(commands):
    """Adds `customstep grid`."""
    parser = commands.add_parser(
        "grid",
        help="draw a sheet of samples of a saved GAN, VAE or diffusion model",
        description="Draw a sheet of samples of a saved GAN as a PNG file. The same model, seed\n"
        "and layout give the same picture; the file itself records them as metadata.",
        epilog="""\
classes:
  A row of a conditional GAN shows one class. The rows take the classes of
  --labels in turn, or all classes where it is not given: ten classes, ten rows.

examples:
  customstep grid gan.keras
      8 x 8 samples in grid.png
  customstep grid gan.keras --seed 1 --out runs/other.png
      other samples, in another file
  customstep grid gan.keras --best-of 4
      each the best of four, as the discriminator sees it
  customstep grid gan.keras --interpolate --cols 12
      each row turns one sample into another
  customstep grid gan.keras --labels 2,0 --rows 4
      rows of the classes 2, 0, 2 and 0
  customstep grid gan.keras --rows 100 --cols 100 --padding 0 --scale 1
      10,000 samples
""",
    )
    parser.add_argument("model", metavar="MODEL.keras", type=pathlib.Path, help="the saved GAN")
    parser.add_argument(
        "--rows",
        type=whole(1),
        metavar="R",
        help="images down (default: 8, or one row for each class shown)",
    )
    parser.add_argument(
        "--cols",
        type=whole(1),
        default=8,
        metavar="C",
        help="images across (default: %(default)s)",
    )
    _add_seed(parser)
    _add_sampling(parser)
    parser.add_argument(
        "--padding",
        type=whole(0),
        default=2,
        metavar="P",
        help="pixels around and between images (default: %(default)s)",
    )
    parser.add_argument(
        "--scale",
        type=whole(1),
        default=2,
        metavar="K",
        help="every image pixel becomes K x K pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--labels",
        type=_class_numbers,
        metavar="0,1,2",
        help="classes of the rows, in turn (default: all classes)",
    )
    parser.add_argument(
        "--interpolate",
        action="store_true",
        help="let every row go from one latent vector to another, along the sphere",
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default="grid.png",
        metavar="FILE.png",
        help="the picture; overwritten if it exists (default: %(default)s)",
    )
    parser.set_defaults(run=_run_grid, parser=parser)


def _inspect(commands):
    """Adds `customstep inspect`."""
    parser = commands.add_parser(
        "inspect",
        help="tell what one training step of a saved model does",
        description="Tell what one training step of a saved model does: its terms, gradients,\n"
        "learning rates, which networks move, the time of each part, and the mistakes\n"
        "that can be seen. The file stays as it is.",
        epilog="""\
examples:
  customstep inspect gan.keras
      a step on 32 images of the embedded data set
  customstep inspect gan.keras --batch-size 8 --split test
      a step on 8 images of the embedded test set
""",
    )
    parser.add_argument("model", metavar="MODEL.keras", type=pathlib.Path, help="the saved model")
    _add_dataset(parser)
    parser.add_argument(
        "--split", default="train", metavar="S", help="of the data set (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size",
        type=whole(1),
        default=32,
        metavar="N",
        help="images in the step (default: %(default)s)",
    )
    parser.set_defaults(run=_run_inspect, parser=parser)


def _evaluate(commands):
    """Adds `customstep evaluate`."""
    parser = commands.add_parser(
        "evaluate",
        help="measure how near the samples of a saved GAN come to real images",
        description="Measure how near the samples of a saved GAN come to real images: distances of\n"
        "the distributions, how good and how varied the samples are, whether they are\n"
        "copies. The numbers depend on the network, the data and the counts; those of\n"
        "the bundled network are not the FID of papers.",
        epilog="""\
examples:
  customstep evaluate gan.keras
      10,000 samples and the embedded test set
  customstep evaluate gan.keras --dataset fashion_mnist
      the 10,000 test images of the whole Fashion-MNIST
  customstep evaluate gan.keras --dataset unseen --split train
      the images of a folder; a folder is one split, of this name
  customstep evaluate gan.keras --network features.keras --cache runs/cache
      the features of another network, kept for the next time
""",
    )
    parser.add_argument("model", metavar="MODEL.keras", type=pathlib.Path, help="the saved GAN")
    _add_dataset(parser)
    parser.add_argument(
        "--split",
        default="test",
        metavar="S",
        help="of the data set, images that the GAN was not trained on (default: %(default)s)",
    )
    parser.add_argument(
        "--train-split",
        metavar="S",
        help="images that it was trained on, to look for copies of them (default: train if --split "
        "is test, else none)",
    )
    parser.add_argument(
        "--samples",
        type=whole(6),
        default=10_000,
        metavar="N",
        help="how many images to generate (default: %(default)s)",
    )
    _add_seed(parser)
    _add_sampling(parser)
    parser.add_argument(
        "--network",
        type=pathlib.Path,
        metavar="FILE.keras",
        help="images in [0, 255] to features, or to features and logits (default: the bundled one, "
        "for 28 x 28 gray images)",
    )
    parser.add_argument(
        "--cache",
        type=pathlib.Path,
        metavar="FOLDER",
        help="keep the features of the real images in it for the next time",
    )
    parser.set_defaults(run=_run_evaluate, parser=parser)


def _launch(commands):
    """Adds `customstep launch`."""
    parser = commands.add_parser(
        "launch",
        help="run a training script in several processes",
        description="Run a training script in several processes that train one model in step, each\n"
        "on its part of every batch. The script needs no change. The first process\n"
        "prints and writes files; if one dies, all end.",
        epilog="""\
examples:
  customstep launch --workers 2 examples/dcgan.py --smoke
      two processes on this machine
  TF_CONFIG='{"cluster": {"worker": ["host1:2222", "host2:2222"]},
    "task": {"type": "worker", "index": 0}}' customstep launch train.py
      the first of two machines; "index": 1 on the second
""",
    )
    parser.add_argument(
        "--workers",
        type=whole(1),
        metavar="N",
        help="processes to start on this machine (default: 2; not where TF_CONFIG is set)",
    )
    parser.add_argument(
        "--max-restarts",
        type=whole(0),
        default=0,
        metavar="K",
        help="how often to start all again after one has died (default: %(default)s)",
    )
    parser.add_argument("script", metavar="SCRIPT.py", type=pathlib.Path)
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="...", help="the script's own arguments"
    )
    parser.set_defaults(run=_run_launch, parser=parser)


def _add_sampling(parser):
    parser.add_argument(
        "--temperature",
        type=_temperature,
        default=1.0,
        metavar="T",
        help="deviation of the noise: below 1 more typical and less varied (default: %(default)s)",
    )
    parser.add_argument(
        "--best-of",
        type=whole(1),
        default=1,
        metavar="K",
        help="make K images for each and keep the one that the discriminator finds the most real "
        "(default: %(default)s)",
    )


def _temperature(text):
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0; received '{text}'")
    return value


def _add_seed(parser):
    parser.add_argument(
        "--seed",
        type=whole(0, 2**63 - 1),
        default=0,
        metavar="S",
        help="of the latent vectors (default: %(default)s)",
    )


def _add_dataset(parser):
    parser.add_argument(
        "--dataset",
        default="fashion_mini",
        metavar="NAME",
        help="a TFDS name or a folder of images (default: %(default)s)",
    )


def _new(commands):
    """Adds `customstep new`."""
    parser = commands.add_parser(
        "new",
        help="write a script to begin a model of your own with, and its test",
        description="Write a script that trains a small model, for you to change, and a test of it.\n"
        "Both run as they are.",
        epilog="""\
examples:
  customstep new my_gan.py --from gan
      my_gan.py and test_my_gan.py; then:
  python my_gan.py --smoke
  python -m pytest test_my_gan.py
""",
    )
    parser.add_argument("script", metavar="SCRIPT.py", type=pathlib.Path, help="the new script")
    parser.add_argument(
        "--from",
        dest="kind",
        choices=scaffolding.KINDS,
        required=True,
        help="what it is to begin with: " + ", ".join(scaffolding.KINDS),
        metavar="KIND",
    )
    parser.set_defaults(run=_run_new, parser=parser)


COMMANDS = (_new, _grid, _evaluate, _inspect, _launch)


def _run_grid(arguments):
    gan = _load_gan(arguments.model)
    classes = _classes(gan, arguments.labels)
    rows = arguments.rows or (8 if classes is None else len(classes))
    cols = arguments.cols
    layout = {"padding": arguments.padding, "scale": arguments.scale}
    height, width = _sheet_size(gan, rows, cols, **layout)
    if arguments.out.suffix.lower() != ".png":
        raise ValueError(
            f"The picture cannot be written in this format. Expected a name that ends in .png; "
            f"received '{arguments.out}'. Change --out."
        )
    with _writable(arguments.out) as temporary:  # found out now, not after 10,000 samples
        labels = None if classes is None else np.resize(classes, rows).repeat(cols)
        points = _latents(gan, rows, cols, labels, arguments)
        sheet = _sheet(gan, points, labels, cols, (height, width), **layout)
        metadata = {
            "model": arguments.model.name,
            "step": gan.steps,
            "seed": arguments.seed,
            "rows": rows,
            "cols": cols,
            "interpolate": arguments.interpolate,
            "temperature": arguments.temperature,
            "best_of": arguments.best_of,
        }
        if classes is not None:
            metadata["labels"] = ",".join(map(str, classes))
        pictures.save_png(temporary, sheet, metadata)
    print(f"{arguments.out}: {width} x {height} pixels, {rows * cols} images")


def _run_evaluate(arguments):
    gan = _load_gan(arguments.model)
    network = arguments.network and _load_model(arguments.network)
    sampling = _sampling(gan, arguments)
    sample = gan.sample(1, seed=0)

    def real(split):
        images, labels, _ = datasets.read_images(
            arguments.dataset, split, image_size=sample.shape[1:3]
        )
        return features.extract(images, network, cache=arguments.cache), labels

    test, classes_of_data = real(arguments.split)
    train = arguments.train_split or ("train" if arguments.split == "test" else None)
    train = train and real(train)[0]
    classes = getattr(gan, "num_classes", None)
    labels = None if classes is None else np.arange(arguments.samples) % classes
    images = gan.sample(arguments.samples, seed=arguments.seed, labels=labels, **sampling)
    generated = features.extract(images, network, image_range=gan.image_range)
    if test.labels is None or np.mean(test.labels == classes_of_data) < 0.5:
        labels = None  # the network knows other classes than the data have
    print(evaluate(generated, test, train=train, labels=labels))
    print(
        f"{arguments.model.name}, {_described(arguments)}, beside {arguments.dataset}, "
        f"{arguments.split}\nin features of {arguments.network or 'the bundled network'}: "
        "not the FID of papers"
    )


def _described(arguments):
    names = "seed", "temperature", "best_of"
    return ", ".join(f"{name.replace('_', ' ')} {getattr(arguments, name):g}" for name in names)


def _run_new(arguments):
    script, test = scaffolding.write_scaffold(arguments.script, arguments.kind)
    print(f"{script}: run it with `python {script} --smoke`, then change it")
    print(f"{test}: run it with `python -m pytest {test}`")


def _run_launch(arguments):
    if not arguments.script.is_file():
        raise ValueError(
            f"There is no script to run. Expected the path of a Python file; received "
            f"'{arguments.script}'. Correct the path."
        )
    if "TF_CONFIG" not in os.environ:
        workers = arguments.workers or 2
        sys.exit(
            launching.launch(arguments.script, arguments.arguments, workers, arguments.max_restarts)
        )
    if arguments.workers or arguments.max_restarts:
        raise ValueError(
            "Workers are chosen from two sides. Expected TF_CONFIG or the options of this "
            "command; received both. Unset TF_CONFIG, or leave out --workers and --max-restarts."
        )
    launching.run(arguments.script, arguments.arguments)


def _run_inspect(arguments):
    model = _load_model(arguments.model)
    if not model.compiled:
        raise ValueError(
            f"The model '{arguments.model}' has no training step. Expected a model saved after "
            f"`compile`, of functions that are registered; received one that is not compiled. "
            f"Compile it before `model.save(...)`."
        )
    image_range = getattr(model, "image_range", (-1.0, 1.0))
    data = datasets.load_images(
        arguments.dataset,
        arguments.split,
        batch_size=arguments.batch_size,
        image_range=image_range,
        shuffle=False,
    )
    images, labels = next(iter(data))
    try:
        report = inspect(model, (images, labels), verbose=False)
    except Exception as error:
        try:  # not every model takes labels
            report = inspect(model, images, verbose=False)
        except Exception:
            raise ValueError(
                f"The step of '{arguments.model}' fails on this data. Expected a model of images "
                f"{tuple(images.shape)}, with or without labels; received "
                f"{textwrap.shorten(f'{type(error).__name__}: {error}', 200)} Pass the --dataset "
                f"that the model was trained on."
            ) from error
    print(report)


def _load_gan(path):
    gan = _load_model(path)
    if not all(hasattr(gan, name) for name in ("latents", "generate", "sample", "image_range")):
        raise ValueError(
            f"The model '{path}' makes no images. Expected one with `latents`, `generate`, "
            f"`sample` and `image_range`; received {type(gan).__name__}. Pass a saved "
            "`customstep.GAN`, `VAE` or `Diffusion`."
        )
    return gan


def _load_model(path):
    if not path.is_file():
        received = "a folder" if path.is_dir() else "a path that does not exist"
        raise ValueError(
            f"There is no model '{path}'. Expected a .keras file; received {received}. Pass the "
            f"file that `model.save(...)` or `ModelCheckpoint` wrote."
        )
    try:
        return _load(path)
    except Exception as error:  # Keras, zipfile and h5py raise all kinds
        reason = str(error).rpartition("Exception encountered: ")[2]  # after pages of configuration
        reason = textwrap.shorten(f"{type(error).__name__}: {reason}", 200).rstrip(".")
        here = {"keras": keras.__version__, "customstep": __version__}
        saved = saving.versions(path)
        if any(_release(saved[name]) > _release(here[name]) for name in saved):
            raise ValueError(
                f"The model '{path}' was saved by a newer version. Expected at most "
                f"{_listed(here)}; received a file of {_listed(saved)} ({reason}). Update the "
                "packages, or save the model with the versions that are here."
            ) from error
        raise ValueError(
            f"The model '{path}' cannot be loaded. Expected a .keras file of registered classes; "
            f"received {reason}. Pass the file that `model.save(...)` wrote."
        ) from error


def _load(path):
    # In Keras's safe mode: a file may come from anyone, and is to run no code of its own.
    try:
        return keras.models.load_model(path, safe_mode=True)
    except (TypeError, ValueError):  # compiled with a function that only its script knows
        return keras.models.load_model(path, compile=False, safe_mode=True)


def _release(version):
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def _listed(versions):
    return " and ".join(f"{name} {version}" for name, version in versions.items())


def _classes(gan, labels):
    """The classes that the rows show in turn, or None where the GAN has none."""
    count = getattr(gan, "num_classes", None)
    if labels is None:
        return None if count is None else list(range(count))
    if count is None:
        raise ValueError(
            "This GAN takes no labels. Expected no --labels for a GAN without classes; received "
            f"{labels}. Leave --labels out."
        )
    if max(labels) >= count:
        raise ValueError(
            f"This GAN has no class {max(labels)}. Expected --labels from 0 to {count - 1}; "
            f"received {labels}. Correct --labels."
        )
    return labels


def _sheet_size(gan, rows, cols, padding, scale):
    """Height and width in pixels, from a first image."""
    h, w = gan.sample(1, seed=0).shape[1:3]
    return grids.sheet_size(rows, cols, h, w, padding, scale)


def _sampling(gan, arguments):
    """What `sample` and `best_latents` are told of the images that are wanted."""
    temperature = arguments.temperature
    sampling = {} if temperature == 1 else {"temperature": temperature}  # which a model may lack
    if arguments.best_of == 1:
        return sampling
    if not hasattr(gan, "best_latents"):
        raise ValueError(
            f"{type(gan).__name__} cannot tell better images from worse. Expected a GAN, whose "
            f"discriminator can; received --best-of {arguments.best_of}. Leave it out."
        )
    return {**sampling, "best_of": arguments.best_of}


def _latents(gan, rows, cols, labels, arguments):
    """Noise of all images, row by row: float32 `(rows * cols, *gan.latent_shape)`."""
    sampling = _sampling(gan, arguments)
    if not arguments.interpolate:
        if arguments.best_of > 1:
            return gan.best_latents(rows * cols, arguments.seed, labels=labels, **sampling)
        return gan.latents(rows * cols, arguments.seed, **sampling)
    if arguments.best_of > 1:
        raise ValueError(
            f"A path is not chosen image by image. Expected one of --interpolate and --best-of; "
            f"received both, --best-of {arguments.best_of}. Leave one of them out."
        )
    if cols < 2:
        raise ValueError(
            f"A path needs both its ends. Expected at least 2 columns with --interpolate; received "
            f"--cols {cols}. Raise --cols."
        )
    ends = gan.latents(2 * rows, arguments.seed)
    paths = latents.slerp(*np.split(ends.reshape(2 * rows, -1), 2), cols)  # (rows, cols, length)
    return arguments.temperature * paths.reshape(-1, *ends.shape[1:])


def _sheet(gan, points, labels, cols, size, padding, scale):
    """A contact sheet drawn a few rows at a time, for images as floats need more room than it."""
    sheet = None
    row_height = (size[0] - padding) * cols // len(points)
    step = max(1, _BLOCK // cols) * cols
    for first in range(0, len(points), step):
        part = slice(first, first + step)
        strip = grids.contact_sheet(
            gan.generate(points[part], None if labels is None else labels[part]),
            cols=cols,
            padding=padding,
            scale=scale,
            image_range=gan.image_range,
        )
        if sheet is None:
            sheet = np.empty((*size, strip.shape[-1]), np.uint8)
        top = first // cols * row_height
        sheet[top : top + len(strip)] = strip
        _show_progress(min(first + step, len(points)), len(points))
    return sheet


def _show_progress(done, total):
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{done:,} of {total:,} images", end=end, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _writable(path):
    """`atomic_path` whose errors speak of `--out`."""
    try:
        with atomic_path(path) as temporary:
            yield temporary
    except OSError as error:
        raise ValueError(
            f"The picture '{path}' cannot be written. Expected a folder that exists or can be "
            f"made, and room in it; received: {error.strerror or error}. Change --out."
        ) from error


def _class_numbers(text):
    try:
        return [whole(0)(part) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expected class numbers such as 0,1,2; received '{text}'"
        ) from None
