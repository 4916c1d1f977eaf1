"""Models that are saved whole, however they are made, and the small objects they are made with."""

import dataclasses
import functools
import inspect

import keras

from customstep import files

__all__ = ["PersistentModel", "SavedDataclass"]


class PersistentModel(keras.Model):
    """A `keras.Model` that keeps in its file what Keras leaves out.

    It is made from a functional graph, `MyModel(inputs=..., outputs=...)`, from networks given to
    the constructor, or with a `call` of its own; all three kinds may share a base class, which
    Keras does not allow. Constructor arguments that are kept in attributes of the same names are
    saved, networks included, and so are the states of all random generators. A file that cannot
    be written leaves the old one in place.
    """

    def __init__(self, *args, **kwargs):
        if _describes_a_graph(args, kwargs) and not isinstance(self, _Functional):
            object.__setattr__(self, "__class__", _functional_twin(type(self)))
        super().__init__(*args, **kwargs)

    def get_config(self):
        parameters = list(inspect.signature(type(self).__init__).parameters.values())[1:]
        named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        takes_more = any(p.kind is p.VAR_KEYWORD for p in parameters)
        config = super().get_config() if takes_more else {}
        for name in named:
            if not hasattr(self, name):
                raise NotImplementedError(
                    f"{type(self).__name__} cannot be saved. Expected an attribute for every "
                    f"argument of its constructor; received none for '{name}'. Keep it in the "
                    f"constructor: `self.{name} = {name}`."
                )
            config[name] = keras.saving.serialize_keras_object(getattr(self, name))
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        if "input_layers" in config:  # a functional graph, which Keras rebuilds itself
            return super().from_config(config, custom_objects)
        return cls(**keras.saving.deserialize_keras_object(config, custom_objects))

    def save(self, filepath, overwrite=True, **kwargs):
        with files.replaced(filepath, overwrite) as path:
            super().save(path, overwrite=overwrite, **kwargs)

    def save_weights(self, filepath, overwrite=True, **kwargs):
        with files.replaced(filepath, overwrite) as path:
            super().save_weights(path, overwrite=overwrite, **kwargs)

    def save_own_variables(self, store):
        """Saves what Keras leaves out: the states of all random generators in the model."""
        super().save_own_variables(store)
        for index, state in enumerate(self._random_states):
            store[f"random_state_{index}"] = state.numpy()

    def load_own_variables(self, store):
        names = [name for name in store.keys() if name.startswith("random_state_")]
        super().load_own_variables({n: store[n] for n in store.keys() if n not in names})
        for name in names:
            self._random_states[int(name.rsplit("_", 1)[1])].assign(store[name])

    @property
    def _random_states(self):
        weights = {id(variable) for variable in self.weights}
        return [variable for variable in self.variables if id(variable) not in weights]


class SavedDataclass:
    """A dataclass that Keras can save, such as a loss or a schedule; register it with Keras."""

    def get_config(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        return cls(**config)


# Keras does not export the class of functional models; this makes an empty one to ask for its type.
_Functional = type(keras.Model.__new__(keras.Model, inputs=(), outputs=()))


def _describes_a_graph(args, kwargs):
    """Whether constructor arguments are the inputs and outputs of a functional graph."""
    tensors = keras.tree.flatten((*args[:2], kwargs.get("inputs"), kwargs.get("outputs")))
    return any(isinstance(tensor, keras.KerasTensor) for tensor in tensors)


@functools.cache
def _functional_twin(cls):
    """A subclass of `cls` for models made of a functional graph.

    Keras itself would replace `keras.Model` by its functional class among the bases of `cls`, for
    good, and of every class that `cls` inherits from: after the first functional model no
    other kind could be made any more. `__class__` keeps the twin out of sight, so that a saved
    model names the class its user wrote.
    """
    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(cls.__name__, (cls, _Functional), {**names, "__class__": property(lambda _: cls)})
