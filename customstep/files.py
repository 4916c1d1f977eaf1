"""Files appear whole or not at all: written beside their final place, then renamed."""

import contextlib
import os
import pathlib
import tempfile

from customstep import replicas
from customstep.checks import check_path

__all__ = ["ASSETS", "atomic_folder", "atomic_path", "replaced", "thrown_away"]

_HERE = pathlib.Path(__file__).parent
# What is bundled: within the package where it is installed, beside it in the repository.
ASSETS = (_HERE if (_HERE / "assets").is_dir() else _HERE.parent) / "assets"


@contextlib.contextmanager
def atomic_path(path):
    """A temporary path to write to, which becomes `path` when the block ends well.

    A block that raises leaves whatever `path` held before. The temporary name keeps the suffix,
    because many writers choose their format by it. Of several workers only the chief writes; what
    the others write is thrown away.

    Args:
        path: the final file; missing parent folders are made.

    Yields:
        `pathlib.Path` in the same folder, so that the rename never crosses a file system.

    Raises:
        TypeError: `path` is not a path.
        IsADirectoryError: `path` is a folder.
        NotADirectoryError: a part of it is a file.
        OSError: the folder cannot be made or written to.

    Example:

        with atomic_path("runs/grid.png") as temporary:
            image.save(temporary)
    """
    check_path("path", path)
    path = pathlib.Path(path)
    if not replicas.is_chief():
        with thrown_away(path) as temporary:
            yield temporary
        return
    if path.is_dir():
        raise IsADirectoryError(
            f"Cannot write the file '{path}': it is a folder. Expected the name of a file; "
            f"received the name of a folder. Name a file in it, such as '{path / 'name.png'}'."
        )
    _make_parent(path)
    # The folder holds the temporary file so that writers which insist on creating it can.
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
        temporary = pathlib.Path(folder) / path.name
        yield temporary
        os.replace(temporary, path)


@contextlib.contextmanager
def atomic_folder(path):
    """A temporary folder to fill, which becomes the folder `path` when the block ends well.

    As `atomic_path`; the files in it have reached the disk by then, so that a failing power supply
    leaves a whole folder, too. A folder that was there before is replaced.

    Args:
        path: the final folder; missing parent folders are made.

    Yields:
        `pathlib.Path` of an empty folder.

    Raises:
        NotADirectoryError: `path` is a file.
        OSError: the folder cannot be made or written to.

    Example:

        with atomic_folder("runs/report") as temporary:
            (temporary / "a.txt").write_text("a")
            (temporary / "b.txt").write_text("b")
    """
    path = pathlib.Path(path)
    if not replicas.is_chief():
        with thrown_away(path) as temporary:
            temporary.mkdir()
            yield temporary
        return
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(
            f"Cannot write the folder '{path}': it is a file. Expected the name of a folder; "
            f"received the name of a file. Name another folder."
        )
    _make_parent(path)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as scratch:
        temporary = pathlib.Path(scratch) / path.name
        temporary.mkdir()
        yield temporary
        for file in [*temporary.rglob("*"), temporary]:
            _to_disk(file)
        if path.exists():
            os.rename(path, pathlib.Path(scratch) / "replaced")
        os.rename(temporary, path)
        _to_disk(path.parent)


def _make_parent(path):
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            f"Cannot write '{path}': a part of its path is a file. Expected a folder that "
            f"exists or can be made; received '{path.parent}'. Name another folder."
        ) from error


def _to_disk(path):
    if path.is_dir():
        with contextlib.suppress(OSError):  # not every system does that for a folder
            _synchronize(path, os.O_RDONLY)
    else:
        _synchronize(path, os.O_RDWR)


def _synchronize(path, flags):
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def thrown_away(path):
    """A temporary path of the same name as `path`, gone after the block."""
    with tempfile.TemporaryDirectory() as folder:
        yield pathlib.Path(folder) / pathlib.Path(path).name


@contextlib.contextmanager
def replaced(path, overwrite=True):
    """`atomic_path` for Keras's writers, which also write folders and ask before overwriting.

    Args:
        path: where a model or its weights go.
        overwrite: False lets Keras ask before it writes over a file.

    Yields:
        A temporary path where one file is replaced, else `path` itself.
    """
    path = pathlib.Path(path)
    one_file = path.name.endswith((".keras", ".weights.h5")) and not path.is_dir()
    if one_file and (overwrite or not path.exists()):
        with atomic_path(path) as temporary:
            yield temporary
    else:
        yield path
