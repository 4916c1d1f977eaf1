"""A starting point for a model of one's own: a script that runs as it is, and its test."""

import contextlib
import keyword
import pathlib
import sys

from customstep.files import atomic_path

__all__ = ["KINDS", "write_scaffold"]

KINDS = ("gan", "classifier", "auxiliary", "frozen", "step")

_FOLDER = pathlib.Path(__file__).parent / "scaffolds"
_NAME = "my_model"  # in the files, in the place of the script's
_IMPORTED = ("customstep", "keras", "matplotlib", "numpy", "pytest", "tensorflow")
_TEST = '''"""Does my_model.py train, and can what it saves be loaded?"""

import keras
import numpy as np

import my_model as script


def test_it_trains_and_is_saved_whole(tmp_path):
    history = script.main(["--smoke", "--out", str(tmp_path)]).history
    assert all(np.isfinite(values).all() for values in history.values())
    model = keras.models.load_model(tmp_path / "model.keras")
    assert model.steps == 8  # two epochs of four; `fit` goes on from here
'''


def write_scaffold(path, kind):
    """Writes a script, and beside it the test of it, `test_<name>.py`.

    Args:
        path: the script, whose name is that of a Python module: `my_model.py`.
        kind: one of `KINDS`, the template to begin with.

    Returns:
        The two paths.

    Raises:
        ValueError: `kind` is none, or `path` is not the name of a module.
        FileExistsError: one of the files is there already; both are left as they are.
        OSError: the files cannot be written.
    """
    path = pathlib.Path(path)
    if kind not in KINDS:
        raise ValueError(
            f"There is no scaffold '{kind}'. Expected one of {', '.join(KINDS)}; received "
            f"'{kind}'. Choose the one that is nearest, and change it."
        )
    if path.suffix != ".py" or not path.stem.isidentifier() or keyword.iskeyword(path.stem):
        raise ValueError(
            f"'{path}' cannot be imported by its test. Expected the name of a Python module, "
            f"such as my_model.py; received '{path.name}'. Use letters, digits and underscores."
        )
    if path.stem in sys.stdlib_module_names or path.stem in _IMPORTED:
        raise ValueError(
            f"'{path}' would hide another module. Expected a name that is not taken, such as "
            f"my_{path.name}; received that of a module which the script or its test imports. "
            "Choose another name."
        )
    texts = {
        path: (_FOLDER / f"{kind}.py").read_text(encoding="utf-8"),
        path.with_name(f"test_{path.name}"): _TEST,
    }
    for file in texts:
        if file.exists():
            raise FileExistsError(
                f"'{file}' exists already. Expected a new name; received that of a file, which "
                "was left as it is. Choose another name, or remove the file."
            )
    with contextlib.ExitStack() as stack:  # both or none
        for file, text in texts.items():
            temporary = stack.enter_context(atomic_path(file))
            temporary.write_text(text.replace(_NAME, path.stem), encoding="utf-8")
    return tuple(texts)
