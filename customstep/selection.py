"""Which variables of a model, or which parts of them: by path, by layer, by row, by mask.

A path is the way from the model to a variable: the names of the layers on it and of the variable
itself, such as "stem/conv/kernel". A layer that its parent keeps in an attribute, as in
`self.stem = ...` or `self.blocks = [...]`, goes by that name too: "blocks/0/kernel". A pattern
that matches no such path is tried on Keras's own `variable.path`. That depends on how a layer came
to be: it may begin with the model's name, and lacks the name of a network that was built earlier.

A pattern is a shell glob over a whole path in which `*` also crosses "/": "stem/*" is everything in
the stem however deep, and "*/gamma" or "block[12]/*" are others. Upper and lower case differ.
"""

import dataclasses
import difflib
import fnmatch
import itertools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from customstep.checks import as_array
from customstep.saving import SavedDataclass

__all__ = ["Part", "as_entries", "intersection", "paths", "select", "union", "without"]


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True, eq=False)
class Part(SavedDataclass):
    """A part of a variable: rows of an embedding, or whatever a mask says.

    Args:
        pattern: glob over paths, or the position of one variable in `model.weights`. Every
            variable that it matches has to fit the rest.
        rows: the part's indices along the first axis: a list, a range or a slice.
        mask: bool, of the variable's shape or one that broadcasts to it; True is in the part.

    Raises:
        TypeError: not just one of `rows` and `mask` is given, or one of a wrong type.

    Example:

        Part("embedding/*", rows=range(1000))  # the words that were known before
        Part("dense/kernel", mask=abs(kernel) < 0.01)
    """

    pattern: str | int
    _: dataclasses.KW_ONLY
    rows: Sequence[int] | slice | None = None
    mask: Any = None

    def __post_init__(self):
        if (self.rows is None) == (self.mask is None):
            raise TypeError(
                f"It is not clear which part of {self.pattern!r} is meant. Expected `rows` or "
                f"`mask`; received {'neither' if self.rows is None else 'both'}. Pass one of them."
            )
        if self.mask is not None:
            object.__setattr__(self, "mask", self._array("mask", self.mask, "b", "bools"))
        elif not isinstance(self.rows, slice):
            rows = self._array("rows", self.rows, "iu", "a list of integers, a range or a slice")
            object.__setattr__(self, "rows", rows.reshape(-1).tolist())

    def _array(self, name, values, kinds, expected):
        array = as_array(name, values)
        if array.dtype.kind not in kinds:
            raise TypeError(
                f"The `{name}` of a part have a wrong type. Expected {expected}; received "
                f"{array.dtype}, shape {array.shape}. Correct Part({self.pattern!r}, ...)."
            )
        return array

    def mask_of(self, path, shape):
        """The part of one variable, a bool array of its rank that broadcasts to its shape.

        Args:
            path: of the variable, for the error.
            shape: of the variable, a tuple.

        Raises:
            ValueError: the part does not fit the shape, or is empty.
        """
        if self.mask is not None:
            expected = f"a mask that broadcasts to {shape}"
            received = f"one of {self.mask.shape}" if self.mask.any() else "one without a True"
            fits = len(self.mask.shape) <= len(shape) and all(
                have in (1, want) for have, want in zip(self.mask.shape[::-1], shape[::-1])
            )
            mask = self.mask.reshape((1,) * (len(shape) - self.mask.ndim) + self.mask.shape)
        else:
            count = shape[0] if shape else 0
            expected = f"rows from 0 to {count - 1}" if shape else "a variable that has rows"
            received = f"{self.rows} for the shape {shape}"
            fits = isinstance(self.rows, slice) or all(0 <= row < count for row in self.rows)
            mask = np.zeros((count, *[1] * (len(shape) - 1)), bool)
            if fits:
                mask[self.rows] = True
        if not fits or not mask.any():
            raise ValueError(
                f"The part does not fit '{path}'. Expected {expected}; received {received}. "
                f"Correct Part({self.pattern!r}, ...)."
            )
        return mask

    @classmethod
    def from_config(cls, config):
        return cls(**keras.saving.deserialize_keras_object(config))


def paths(model):
    """The paths of a built model's variables.

    Args:
        model: `keras.Model` or another layer.

    Returns:
        List of tuples of str, one for each of `model.weights`: all paths that lead to it, by
        attributes first.
    """
    found = {id(variable): {} for variable in model.weights}  # dicts as ordered sets
    for path, variable in _walk(model):
        found[id(variable)][path] = None
    return [tuple(of_variable) for of_variable in found.values()]


def select(model, what):
    """What patterns, layers and parts select of a built model.

    Args:
        model: `keras.Model`.
        what: a glob over paths, a position in `model.weights`, a layer of the model, a `Part`, or
            a nest of them.

    Returns:
        A selection: dict of `id(variable)` to a bool array, True where it is selected. The array
        is a scalar, or of the variable's rank and broadcasts to its shape; a variable of which
        nothing is selected is not in the dict.

    Raises:
        ValueError: one of them matches nothing, or a part does not fit.
        TypeError: one is of another type.
    """
    weights, names = model.weights, paths(model)
    selected = {}
    for entry in keras.tree.flatten(what):
        pattern = entry.pattern if isinstance(entry, Part) else entry
        for number in _matches(model, pattern, names):
            mask = np.array(True)
            if isinstance(entry, Part):
                mask = entry.mask_of(names[number][0], tuple(weights[number].shape))
            selected = union(selected, {id(weights[number]): mask})
    return selected


def union(a, b):
    """What is in one of two selections."""
    return {key: a.get(key, False) | b.get(key, np.array(False)) for key in {**a, **b}}


def intersection(a, b):
    """What is in both of two selections."""
    both = {key: a[key] & b[key] for key in a if key in b}
    return {key: mask for key, mask in both.items() if mask.any()}


def without(a, b):
    """What is in the first of two selections and not in the second."""
    return intersection(a, {key: ~b.get(key, np.array(False)) for key in a})


def as_entries(model, selected):
    """A selection as what `select` makes it of again, whatever the layers are called by then.

    Returns:
        List of positions in `model.weights` and of `Part`s at such positions.
    """
    masks = ((number, selected.get(id(v))) for number, v in enumerate(model.weights))
    return [
        number if mask.all() else Part(number, mask=mask)
        for number, mask in masks
        if mask is not None
    ]


def _matches(model, pattern, names):
    """The positions of the variables that a pattern, a position or a layer matches."""
    if isinstance(pattern, str):
        by_keras = [(variable.path,) for variable in model.weights]
        matches = _globbed(names, pattern) or _globbed(by_keras, pattern)
    elif isinstance(pattern, keras.layers.Layer):
        ids = {id(variable) for variable in pattern.weights}
        matches = [number for number, v in enumerate(model.weights) if id(v) in ids]
        pattern = pattern.name
    elif isinstance(pattern, int) and not isinstance(pattern, bool):
        matches = [pattern] if 0 <= pattern < len(names) else []
    else:
        raise TypeError(
            "This selects no variables. Expected a pattern such as 'stem/*', a layer or a `Part`; "
            f"received {pattern!r}. Pass one of these, or a list of them."
        )
    if not matches:
        raise ValueError(
            f"{str(pattern)!r} matches no variable of '{model.name}'. Expected a layer of the "
            f"model, or a glob over whole paths {_near(pattern, names)}; received {pattern!r}. "
            "Correct it; `customstep.selection.paths(model)` lists all paths."
        )
    return matches


def _globbed(names, pattern):
    return [
        number
        for number, of_variable in enumerate(names)
        if any(fnmatch.fnmatchcase(path, pattern) for path in of_variable)
    ]


def _near(pattern, names):
    """The paths, or globs of whole layers, that look most like a pattern that matches nothing."""
    readable = list(dict.fromkeys(of_variable[0] for of_variable in names))
    layers = dict.fromkeys(
        "/".join(parts[:depth]) + "/*"
        for parts in (path.split("/") for path in readable)
        for depth in range(1, len(parts))
    )
    near = difflib.get_close_matches(str(pattern), [*layers, *readable], n=4, cutoff=0.5)
    listed = ", ".join(f"'{one}'" for one in near or itertools.islice(layers or readable, 8))
    return f"like {listed}" if near else f"such as {listed or 'none, for there are no variables'}"


def _walk(layer, prefix=""):
    """Every path below a layer, with its variable."""
    below = layer._flatten_layers(include_self=False, recursive=False)
    theirs = {id(variable) for child in below for variable in child.weights}
    for variable in layer.weights:
        if id(variable) not in theirs:
            yield f"{prefix}{variable.name}", variable
    attributes = _attributes(layer)
    for child in below:
        for name in dict.fromkeys([*attributes.get(id(child), ()), child.name]):
            yield from _walk(child, f"{prefix}{name}/")


def _attributes(layer):
    """The attributes in which a layer keeps others: dict of id to names such as "blocks/0"."""
    found = {}
    for name, value in vars(layer).items():
        if name.startswith("_"):
            continue
        if isinstance(value, keras.layers.Layer):
            found.setdefault(id(value), []).append(name)
        elif isinstance(value, (list, tuple, dict)):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, item in items:
                if isinstance(item, keras.layers.Layer):
                    found.setdefault(id(item), []).append(f"{name}/{key}")
    return found
