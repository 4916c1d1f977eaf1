"""A model and all that it holds, as they are at one moment, to go back to."""

import inspect
import itertools
import random
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Set
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

__all__ = ["Snapshot"]


class Snapshot:
    """The state of a model that `restore` goes back to, whatever was done to the model since.

    Use it to try something on a model that perhaps cannot be copied, because it is not built or
    not serializable. The values of variables are copied; objects, from layers to lists, are
    remembered by what they hold, so that what was built since is unbuilt again. The global random
    states of Python, NumPy and Keras go back too. NumPy arrays that are changed in place do not,
    nor does the generator behind `tf.random.normal` outside a graph.

    Args:
        model: `keras.Model`. What its methods use of the names around them, such as an optimizer
            that is a global of the script, belongs to it.

    Attributes:
        objects: list of all that the model reaches, itself first.

    Example:

        before = Snapshot(model)
        model.train_on_batch(x, y)
        before.restore()
    """

    def __init__(self, model):
        self.objects = _reached([model, *_names_used_by(type(model))])
        containers = [vars(one) for one in self.objects if _has_attributes(one)]
        containers += [one for one in self.objects if _kind(one)]
        self._contents = [(one, _KINDS[_kind(one)].copy(one)) for one in containers]
        self._python, self._numpy = random.getstate(), np.random.get_state()
        self._keras = _global_generator().state.value
        random.setstate(self._python)  # which a new generator takes its seed from
        variables = [one for one in self.objects if isinstance(one, tf.Variable)]
        self._values = [(one, tf.identity(one)) for one in [*variables, self._keras]]

    def restore(self):
        """Goes back to the moment of the snapshot, as often as need be."""
        for container, saved in self._contents:
            if not _same(container, saved):
                kind = _KINDS[_kind(container)]
                kind.clear(container)
                kind.fill(container, saved)
        self.restore_values()

    def restore_values(self, but=()):
        """Puts back values and random states only, and leaves what was built since.

        Args:
            but: variables that keep the values they have.
        """
        kept = {id(variable.value) for variable in but}
        for variable, value in self._values:
            if id(variable) not in kept:
                variable.assign(value)
        random.setstate(self._python)
        np.random.set_state(self._numpy)

    def shared_noise(self):
        """Which random generators that are not the model's own were used since the snapshot.

        Returns:
            List of "Python", "NumPy", "Keras".
        """
        keras_moved = not np.array_equal(self._keras, self._values[-1][1])
        numpy_moved = not all(map(np.array_equal, np.random.get_state(), self._numpy))
        python_moved = random.getstate() != self._python
        moved = {"Python": python_moved, "NumPy": numpy_moved, "Keras": keras_moved}
        return [name for name, used in moved.items() if used]


class _Kind(NamedTuple):
    """How to copy, empty and fill a container."""

    copy: Callable
    clear: Callable
    fill: Callable


# Keras's own containers track what is put into them; the methods of their bases do not.
_KINDS = {
    OrderedDict: _Kind(dict, OrderedDict.clear, OrderedDict.update),
    dict: _Kind(dict, dict.clear, dict.update),
    list: _Kind(list, list.clear, list.extend),
    set: _Kind(set, set.clear, set.update),
    deque: _Kind(list, deque.clear, deque.extend),
}


def _kind(item):
    # Not `isinstance`, which TensorFlow's wrapper of a dict passes for one.
    return next((kind for kind in _KINDS if issubclass(type(item), kind)), None)


def _same(items, saved):
    """Whether a container holds the very same objects as its copy."""
    if isinstance(items, Mapping):
        items, saved = itertools.chain(*items.items()), itertools.chain(*saved.items())
    return list(map(id, items)) == list(map(id, saved))


def _reached(roots):
    """All objects that are reached from the roots, without the innards of TensorFlow."""
    found, waiting = {}, deque(roots)
    while waiting:
        item = waiting.popleft()
        if id(item) not in found:
            parts = _parts(item)
            if parts is not None:
                found[id(item)] = item
                waiting.extend(parts)
    return list(found.values())


def _parts(item):
    """What an object holds; None where it holds nothing, or is not to be looked into."""
    if isinstance(item, tf.Variable):
        return []
    if isinstance(item, types.MethodType):
        return [item.__self__]
    if isinstance(item, (types.ModuleType, types.FunctionType, type)):
        return None
    if type(item).__module__.startswith("tensorflow") and not isinstance(item, list):
        # TensorFlow wraps dicts and tuples of what it tracks.
        return [item.__wrapped__] if hasattr(item, "__wrapped__") else None
    parts = list(vars(item).values()) if _has_attributes(item) else []
    if isinstance(item, Mapping):
        return [*parts, *item.values()]
    if isinstance(item, (list, tuple, Set, deque)):
        return [*parts, *item]
    return parts if _has_attributes(item) else None


def _has_attributes(item):
    if isinstance(item, (tf.Variable, types.MethodType)):
        return False
    return isinstance(getattr(item, "__dict__", None), dict)


def _names_used_by(cls):
    """What the methods of a class find by its name outside the class: globals and enclosed."""
    values = []
    for base in cls.__mro__:
        if base.__module__.split(".")[0] in ("builtins", "customstep", "keras", "tensorflow"):
            continue
        for method in vars(base).values():
            method = getattr(method, "python_function", method)  # under `tf.function`
            if isinstance(method, types.FunctionType):
                names = inspect.getclosurevars(method)
                values += [*names.nonlocals.values(), *names.globals.values()]
    return values


def _global_generator():
    """Keras's own seed generator, which it shows nowhere: it is asked for a seed, and caught."""
    kind = keras.random.SeedGenerator
    caught, method = [], kind.next

    def catch(generator, *args, **kwargs):
        caught.append(generator)
        return generator.state.value

    kind.next = catch
    try:
        keras.random.uniform(())
    finally:
        kind.next = method
    return caught[0]
