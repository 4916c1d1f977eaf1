"""Checkpoints on disk: folders that are whole, or known not to be.

    runs/dcgan/checkpoints/
        epoch_0003_batch_000250/    three epochs and 250 batches are done
            model.weights.h5        written by `model.save_weights`
            arrays.npz, state.json  all else
            SHA256SUMS              `sha256sum -c SHA256SUMS` checks the others
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import uuid
import warnings

import keras
import ml_dtypes  # of which numpy itself knows nothing
import numpy as np

from customstep import files

__all__ = ["digest", "is_plain", "lock", "names", "newest", "read", "remove", "write"]

_SUMS = "SHA256SUMS"
_FUNCTIONS = {"keras.ops": keras.ops, "numpy": np}  # such as `less`, which callbacks keep
_NAME = re.compile(r"epoch_(\d{4,})_batch_(\d{6,})")


@contextlib.contextmanager
def write(directory, epoch, batch, state, *, keep):
    """Writes a checkpoint, whole or not at all, and removes those before the last `keep`.

    Args:
        directory: folder of the checkpoints.
        epoch, batch: ints, how many are done; the batches of the epoch that is not yet done.
        state: plain data: numbers, texts, arrays, paths, functions of `keras.ops` and numpy, and
            lists, tuples, sets and dicts of these.
        keep: int, how many checkpoints stay.

    Yields:
        `pathlib.Path` of a folder for further files.

    Raises:
        OSError: the disk is full, or the folder cannot be written to; the others stay.
        TypeError: `state` is not plain.
    """
    directory, new = pathlib.Path(directory), f"epoch_{epoch:04d}_batch_{batch:06d}"
    with files.atomic_folder(directory / new) as folder:
        yield folder
        arrays = {}
        text = json.dumps(_encoded(state, arrays), indent=1)
        (folder / "state.json").write_text(text, encoding="utf-8")
        np.savez(folder / "arrays.npz", **arrays)
        sums = [f"{_sum(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
        (folder / _SUMS).write_text("".join(sums), encoding="utf-8")
    with contextlib.suppress(OSError):  # the new one is there, and counts
        written = names(directory)
        for name in written[: written.index(new) + 1][:-keep]:
            remove(directory, name)


def read(path):
    """The `state` that was written into a checkpoint.

    Args:
        path: the folder of the checkpoint, as `newest` found it.
    """
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    with np.load(path / "arrays.npz") as arrays:
        return _decoded(state, arrays)


def names(directory):
    """The names of all checkpoints in a folder, the one with the most steps last."""
    found = [_NAME.fullmatch(path.name) for path in pathlib.Path(directory).glob("epoch_*")]
    return sorted((match[0] for match in found if match), key=_position)


def newest(directory):
    """The path of the last intact checkpoint, or None where there is no checkpoint at all.

    Warns of those that are damaged, and gives them names by which they are not found again.

    Raises:
        ValueError: there are checkpoints, and none is intact.
    """
    damages = {}
    for name in reversed(names(directory)):
        path = pathlib.Path(directory) / name
        damage = _damage(path)
        if damage is None:
            for other, what in damages.items():
                warnings.warn(
                    f"The checkpoint '{other}' is damaged: {what}. '{path}' is used, the one "
                    "before it, and the steps since are done again.",
                    stacklevel=2,
                )
                with contextlib.suppress(OSError):
                    other.rename(other.with_name(f"damaged-{uuid.uuid4().hex[:8]}-{other.name}"))
            return path
        damages[path] = damage
    if damages:
        path, damage = next(iter(damages.items()))
        raise ValueError(
            f"No checkpoint in '{directory}' is intact. Expected files with the checksums in "
            f"{_SUMS}; received '{path.name}', where {damage}. Bring back a copy of the folder, "
            "or start over with `fresh=True`."
        )
    return None


def remove(directory, name):
    """Removes a checkpoint, so that no half of it is ever taken for one."""
    directory = pathlib.Path(directory)
    doomed = directory / f".removing-{uuid.uuid4().hex}"
    (directory / name).rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


@contextlib.contextmanager
def lock(directory):
    """Keeps other processes out of a folder, which is made if missing.

    The lock ends with the process, however it ends. What a process that was killed had begun to
    write is removed.

    Raises:
        BlockingIOError: another process has the folder.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("a+", encoding="utf-8") as file:
        try:
            _lock(file)
        except BlockingIOError as error:
            file.seek(0)
            raise BlockingIOError(
                f"Another run uses the folder '{directory}'. Expected a folder for each run; "
                f"received that of process {file.read().strip() or '?'}, which is alive. Wait for "
                "its end, or name another folder."
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        _LOCKS.add(file)
        for leftover in [*directory.glob(".writing-*"), *directory.glob(".removing-*")]:
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            yield
        finally:
            _LOCKS.discard(file)


_LOCKS = set()  # the open files of the locks that this process holds


def _close_in_child():
    """Lets a forked process go on without the locks, which would outlive its parent in it."""
    for file in _LOCKS:
        file.close()
    _LOCKS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def _lock(file):
    try:
        import fcntl  # which Windows does not have
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        warnings.warn(
            f"The folder of '{file.name}' cannot be locked. Expected a file system with locks; "
            f"received {error}. See to it that no other run uses the folder.",
            stacklevel=4,
        )


def _position(name):
    return tuple(map(int, _NAME.fullmatch(name).groups()))


def _sum(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damage(path):
    """What is wrong with a checkpoint, in words; None where it is intact."""
    try:
        sums = (path / _SUMS).read_text(encoding="utf-8").splitlines()
        expected = dict(reversed(line.split("  ", 1)) for line in sums)
        if not {"state.json", "arrays.npz"} <= set(expected):
            return f"{_SUMS} is not complete"
        for name, checksum in expected.items():
            if _sum(path / name) != checksum:
                return f"{name} differs from its checksum"
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


# -- Plain data as JSON and arrays ------------------------------------------------------------


def _encoded(value, arrays):
    """Plain data as JSON knows them; arrays go into the dict `arrays`."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (np.ndarray, np.generic)) and _is_numeric(value.dtype):
        name = str(len(arrays))
        kind = "array" if isinstance(value, np.ndarray) else "number"
        if value.dtype.kind == "V":  # such as bfloat16, which numpy would not read again
            arrays[name] = np.frombuffer(value.tobytes(), np.uint8)
            return {kind: [name, value.dtype.name, list(value.shape)]}
        arrays[name] = value
        return {kind: [name]}
    if isinstance(value, pathlib.PurePath):
        return {"path": str(value)}
    for module, functions in _FUNCTIONS.items():
        if callable(value) and value is getattr(functions, getattr(value, "__name__", ""), None):
            return {module: value.__name__}
    if isinstance(value, dict):
        items = [[_encoded(k, arrays), _encoded(v, arrays)] for k, v in value.items()]
        return {"dict": items}
    for kind in (list, tuple, set):
        if isinstance(value, kind) and not hasattr(value, "_fields"):  # those of a named tuple
            ordered = sorted(value, key=repr) if kind is set else value
            items = [_encoded(each, arrays) for each in ordered]
            return items if kind is list else {kind.__name__: items}
    raise TypeError(f"{type(value).__name__} is not plain data")


def _decoded(value, arrays):
    if isinstance(value, list):
        return [_decoded(each, arrays) for each in value]
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind in ("array", "number"):
        name, *rest = content
        array = arrays[name]
        if rest:
            dtype, shape = rest
            array = np.frombuffer(array.tobytes(), getattr(ml_dtypes, dtype)).reshape(shape)
        return array[()] if kind == "number" else array.copy()
    if kind == "path":
        return pathlib.Path(content)
    if kind in _FUNCTIONS:
        return getattr(_FUNCTIONS[kind], content)
    if kind == "dict":
        return {_decoded(k, arrays): _decoded(v, arrays) for k, v in content}
    return {"tuple": tuple, "set": set}[kind](_decoded(each, arrays) for each in content)


def is_plain(value):
    """Whether `write` can keep a value."""
    try:
        _encoded(value, {})
    except TypeError:
        return False
    return True


def digest(value):
    """A text that two plain values share if they are equal, arrays in them bit for bit."""
    arrays = {}
    found = hashlib.sha256(json.dumps(_encoded(value, arrays)).encode())
    for array in arrays.values():
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array))
    return found.hexdigest()


def _is_numeric(dtype):
    return dtype.kind in "biufc" or (dtype.kind == "V" and hasattr(ml_dtypes, dtype.name))
