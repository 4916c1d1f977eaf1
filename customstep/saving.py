"""Models that are saved whole, however they are made, and the small objects they are made with."""

import contextlib
import dataclasses
import functools
import inspect
import io
import json
import types
import zipfile

import keras

from customstep import __version__, files, replicas

__all__ = ["PersistentModel", "SavedDataclass", "SavedVariables", "versions"]


class PersistentModel(keras.Model):
    """A `keras.Model` that keeps in its file what Keras leaves out.

    It is made from a functional graph, `MyModel(inputs=..., outputs=...)`, from networks given to
    the constructor, or with a `call` of its own; all three kinds may share a base class, which
    Keras does not allow. Constructor arguments that are kept in attributes of the same names are
    saved, networks included, and so are the states of all random generators. A file that cannot
    be written leaves the old one in place. An exported model serves what `predict` returns.
    """

    _called_on = None

    def __init__(self, *args, **kwargs):
        if _describes_a_graph(args, kwargs) and not isinstance(self, _Functional):
            object.__setattr__(self, "__class__", _functional_twin(type(self)))
        super().__init__(*args, **kwargs)

    def __call__(self, *args, **kwargs):
        if self._called_on is None and args:  # of a `call`, Keras does not keep the dtypes
            specs = keras.tree.map_structure(_input_spec, args[0])
            self._called_on = types.SimpleNamespace(specs=specs)  # which Keras does not track
        return super().__call__(*args, **kwargs)

    def get_config(self):
        names, open_ended, takes_graph = _constructor_arguments(self.__class__)
        config = {}
        if isinstance(self, _Functional) and takes_graph:
            config = keras.Model(self.input, self.output, name=self.name).get_config()
            config["trainable"] = self.trainable
            names = [name for name in names if name not in ("inputs", "outputs", "name")]
        elif open_ended:
            config = super().get_config()
        for name in names:
            if not hasattr(self, name):
                raise NotImplementedError(
                    f"{self.__class__.__name__} cannot be saved. Expected an attribute for every "
                    f"argument of its constructor; received none for '{name}'. Keep it in the "
                    f"constructor: `self.{name} = {name}`."
                )
            config[name] = keras.saving.serialize_keras_object(getattr(self, name))
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        graph = {name: config[name] for name in _GRAPH if name in config}
        arguments = {name: config[name] for name in config if name not in graph}
        if "layers" in graph:
            plain = keras.Model.from_config(graph, custom_objects)
            graph = {"inputs": plain.input, "outputs": plain.output, "name": plain.name}
            if not plain.trainable:  # True would thaw layers that are frozen by themselves
                graph["trainable"] = False
        arguments = keras.saving.deserialize_keras_object(arguments, custom_objects)
        try:
            return cls(**graph, **arguments)
        except (TypeError, ValueError) as error:
            names, _, _ = _constructor_arguments(cls)
            of_layers = list(inspect.signature(keras.layers.Layer.__init__).parameters)[1:-1]
            _check_known(cls, arguments, [*names, *of_layers], error)
            raise

    def __reduce__(self):  # pickle and deepcopy look at the type, which the twin has of its own
        load, arguments = super().__reduce__()
        return getattr(self.__class__, load.__name__), arguments

    def save(self, filepath, overwrite=True, **kwargs):
        with self._destination(filepath, overwrite) as path:
            super().save(path, overwrite=overwrite, **kwargs)
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path, "a") as archive:  # where Keras sees no other file
                    archive.comment = f"customstep {__version__}".encode()

    def save_weights(self, filepath, overwrite=True, **kwargs):
        with self._destination(filepath, overwrite) as path:
            if kwargs or path.exists() or not path.name.endswith(".weights.h5"):
                super().save_weights(path, overwrite=overwrite, **kwargs)
                return
            # HDF5 does not survive a full disk: it would take the process with it.
            memory = _NamedMemory(path.name)
            super().save_weights(memory)
            path.write_bytes(memory.getbuffer())

    def load_weights(self, filepath, **kwargs):
        replicas.meet(self.distribute_strategy)  # what the chief has saved is then there
        super().load_weights(filepath, **kwargs)

    def export(
        self, filepath, format="tf_saved_model", verbose=None, input_signature=None, **kwargs
    ):
        """Exports the model for inference, as `keras.Model.export` does.

        What is served is what `predict` returns, pre- and post-processing included. It is loaded
        without this package.

        Args:
            filepath: as in Keras, like `format`, `verbose` and `**kwargs`.
            input_signature: as in Keras; by default the inputs of the functional graph, or what
                the model was first called on, for batches of any size. Give it where what
                `predict` takes differs from these, such as images of another dtype.

        Raises:
            ValueError: the model was never called, so that nothing is known of its inputs.
        """
        if input_signature is None:
            input_signature = [self._served_specs()]
        with self._destination(filepath) as path:
            _Served(self).export(path, format, verbose, input_signature, **kwargs)

    def _served_specs(self):
        """The inputs that `predict` takes: a nest of `keras.InputSpec`."""
        if isinstance(self, _Functional):
            return keras.tree.map_structure(_input_spec, self.input)
        if self._called_on is None:
            raise ValueError(
                f"{self.__class__.__name__} cannot be exported yet. Expected a model that knows "
                "the shapes of its inputs; received one that was never called. Call it on a "
                "batch, or train it, first."
            )
        return self._called_on.specs

    def _run_through_graph(self, *args, **kwargs):
        if kwargs.keys() >= {"operation_fn", "call_fn"}:  # only `keras.models.clone_model` has both
            self._check_clone_is_whole()
        return super()._run_through_graph(*args, **kwargs)

    def _check_clone_is_whole(self):
        """Raises a `ValueError` where the constructor needs more than the graph.

        Keras means to clone a model with a `get_config` of its own from its configuration, but
        overlooks that (3.15, `models/cloning.py`): it gives the graph alone to the constructor, or
        to that of `keras.Model`.
        """
        names, _, takes_graph = _constructor_arguments(self.__class__)
        if not (takes_graph and not names) and names != ["inputs", "outputs", "name"]:
            raise ValueError(
                f"{self.__class__.__name__} cannot be cloned by `keras.models.clone_model`. "
                "Expected a constructor that takes `*args, **kwargs` alone, because Keras passes "
                f"the graph and drops all else; received one with {', '.join(names) or 'neither'}."
                " Use `type(model).from_config(model.get_config())`, or clone "
                "`keras.Model(model.input, model.output)` and make a new model of that graph."
            )

    def _trackable_children(self, save_type="checkpoint", **kwargs):
        # What `tf.train.Checkpoint` looks at, which knows no `save_own_variables`.
        children = super()._trackable_children(save_type, **kwargs)
        if save_type == "checkpoint":
            for group in self._saved_groups():
                children.update({f"{group.name}/{k}": v.value for k, v in group.variables.items()})
        return children

    def _saved_groups(self):
        """Every `SavedVariables` of the model."""
        return [self.random_states]

    def _destination(self, path, overwrite=True):
        """Where to write what becomes the file `path`, or is thrown away if others write it."""
        if not replicas.is_chief(self.distribute_strategy):
            return files.thrown_away(path)
        return files.replaced(path, overwrite)

    @property
    def random_states(self):
        """The states of all random generators in the model; Keras finds and saves it here."""
        weights = {id(variable) for variable in self.weights}
        states = [v for v in self.variables if id(v) not in weights]
        return SavedVariables("random_states", {str(i): v for i, v in enumerate(states)})


class _Served(keras.Model):
    """What is exported of a model: its `predict_step`."""

    def __init__(self, model):
        super().__init__(name=model.name, autocast=False)
        self.model = model
        self.built = True

    def call(self, inputs):
        return self.model.predict_step((inputs,))


class _NamedMemory(io.BytesIO):
    """A file in memory for Keras, which looks at the name of a file."""

    def __init__(self, name):
        super().__init__()
        self._name = name

    def __str__(self):
        return self._name


class SavedVariables(keras.Operation):
    """Variables that Keras leaves out, kept apart so that a plain Keras model reads the rest.

    As a property of a model it is all that Keras needs to save them.

    Args:
        name: of the group in the file.
        variables: dict of name in the group to variable.
    """

    def __init__(self, name, variables):
        super().__init__(name=name)
        self.variables = variables

    def save_own_variables(self, store):
        for name, variable in self.variables.items():
            store[name] = variable.numpy()

    def load_own_variables(self, store):
        for name, variable in self.variables.items():
            if name in store.keys():  # a file that Keras wrote has none
                variable.assign(store[name])


class SavedDataclass:
    """A dataclass that Keras can save, such as a loss or a schedule; register it with Keras."""

    def get_config(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        _check_known(cls, config, [field.name for field in dataclasses.fields(cls)])
        return cls(**config)


def versions(path):
    """What a `.keras` file was saved with.

    Args:
        path: of the file.

    Returns:
        Dict of "keras" and "customstep" to a version, without what the file does not say.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):
        with zipfile.ZipFile(path) as archive:
            found = {"keras": json.loads(archive.read("metadata.json"))["keras_version"]}
            package, _, version = archive.comment.decode().partition(" ")
            return {**found, "customstep": version} if package == "customstep" else found
    return {}


def _check_known(cls, config, known, error=None):
    """Raises a `ValueError` where a saved configuration has more than its class takes."""
    if unknown := ", ".join(sorted(set(config) - set(known))):
        raise ValueError(
            f"A saved {cls.__name__} has arguments that the class does not take here: {unknown}. "
            f"Expected {', '.join(known)}; received {unknown} as well. The file is of another, "
            f"likely newer version: update the package that defines {cls.__name__}."
        ) from error


# Keras does not export the class of functional models; this makes an empty one to ask for its type.
_Functional = type(keras.Model.__new__(keras.Model, inputs=(), outputs=()))

# The part of a functional model's configuration that describes its graph.
_GRAPH = ("name", "trainable", "layers", "input_layers", "output_layers")


def _constructor_arguments(cls):
    """What the constructor takes, followed up the bases for as long as `**kwargs` goes on.

    Returns:
        The names of the arguments; whether those of Keras's layers may follow; whether a
        functional graph, as inputs and outputs, is among them.
    """
    names, positional = [], True
    for base in cls.__mro__[: cls.__mro__.index(PersistentModel)]:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        kinds = [p.kind for p in parameters]
        positional = positional and inspect.Parameter.VAR_POSITIONAL in kinds
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        names += [p.name for p in parameters if p.kind not in variable and p.name not in names]
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            return names, False, "inputs" in names
    return names, True, positional or "inputs" in names


def _input_spec(tensor):
    """The `keras.InputSpec` of an input in batches of any size; None if it is no tensor."""
    if not hasattr(tensor, "dtype"):
        return None
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if "float" in dtype:  # whatever the data are stored in, and the model computes in
        dtype = keras.config.floatx()
    name = tensor.name if isinstance(tensor, keras.KerasTensor) else None
    return keras.InputSpec(dtype, (None, *tensor.shape[1:]), name=name)


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
