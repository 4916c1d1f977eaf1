"""What a training run is made of, as plain data, and where two runs differ."""

import collections
import importlib.metadata
import json
import re

import keras

from customstep import replicas

__all__ = ["describe", "describe_data", "differences", "versions"]

_PASSING = ("build_config", "compile_config", "shared_object_id")  # not what was asked for
_PACKAGES = ("customstep", "keras", "tensorflow")


def describe(model):
    """What a compiled `StepModel` is made of, that of one process like that of the next."""
    parts = {
        "model": _model(model),
        "compile": _serialized(model.get_compile_config),
        "replicas": model.distribute_strategy.num_replicas_in_sync,
        "several_workers": replicas.several_workers(model.distribute_strategy),
    }
    return _without_numbers(json.loads(json.dumps(parts, default=str)))


def describe_data(batches):
    """The shape of the data, from Keras's iterator over the epochs."""
    elements = keras.tree.map_structure(str, batches._get_iterator().element_spec)
    return {
        "elements": str(elements),
        "batches": batches.num_batches,
        "steps_per_epoch": batches.steps_per_epoch,
    }


def versions():
    """The versions of the packages that compute, by name."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def differences(old, new, path=""):
    """Where two descriptions differ: list of `(path, old, new)`.

    What one of them does not have is the text "nothing".
    """
    if isinstance(old, list) and isinstance(new, list):
        old, new = (dict(enumerate(values)) for values in (old, new))
    if not (isinstance(old, dict) and isinstance(new, dict)):
        same = old == new or old != old and new != new  # NaN is the same as NaN
        return [] if same else [(path, _short(old), _short(new))]
    found = []
    for key in dict.fromkeys([*old, *new]):
        inner = path if key == "config" else f"{path}.{key}".lstrip(".")
        found += differences(old.get(key, "nothing"), new.get(key, "nothing"), inner)
    return found


def _model(model):
    found = _serialized(lambda: keras.saving.serialize_keras_object(model))
    return found or {"class_name": type(model).__name__}


def _serialized(serialize):
    """What Keras serializes, or None where the user's classes do not allow it."""
    try:
        return serialize()
    except (NotImplementedError, TypeError, ValueError):
        return None


def _without_numbers(parts):
    """The parts without the numbers by which Keras tells layers of one name apart.

    They depend on how many were made in the process before, here they count from one.
    """
    names, counts = {}, collections.Counter()

    def collect(value):
        if isinstance(value, dict):
            name = value.get("name")
            if isinstance(name, str) and name not in names:
                plain = re.sub(r"_[0-9]+$", "", name)
                counts[plain] += 1
                names[name] = plain if counts[plain] == 1 else f"{plain}#{counts[plain]}"
            value = list(value.values())
        if isinstance(value, list):
            for each in value:
                collect(each)

    def renamed(value):
        if isinstance(value, dict):
            return {k: renamed(v) for k, v in value.items() if k not in _PASSING}
        if isinstance(value, list):
            return [renamed(each) for each in value]
        return names.get(value, value) if isinstance(value, str) else value

    collect(parts)
    return renamed(parts)


def _short(value):
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
