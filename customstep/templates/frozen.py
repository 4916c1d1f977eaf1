"""Training of some weights while others rest (R7: partial freezing)."""

import contextlib
import dataclasses
import warnings

import keras
import numpy as np
import tensorflow as tf

from customstep import selection, variables
from customstep.step import StepModel

__all__ = ["PartiallyFrozen"]


@keras.saving.register_keras_serializable("customstep")
class PartiallyFrozen(StepModel):
    """A model of which layers, variables or parts of variables stay as they are.

    What is frozen is bit-equal after any number of steps, whatever momentum, weight decay or
    averaging the optimizer has. Variables that are frozen whole cost no backward pass. A layer of
    which all variables are frozen becomes `trainable=False`, as Keras has it: batch norm then
    normalizes by its moving statistics, and these rest. Statistics that are frozen in a layer that
    trains are kept too.

    What is frozen can change at any time, by `freeze` and `unfreeze` or, from epoch to epoch, by
    `callbacks.Unfreeze`. The optimizer knows all variables from the start, so the state of one that
    rests is still there when it wakes. A saved model remembers what is frozen.

    A variable that never trained wakes with empty moments, and Adam and its kin, which count the
    steps of all variables together, no longer correct the bias of them. Late in a run its k-th
    step is (1 - beta_1^k) / sqrt(1 - beta_2^k) times as long as it would be at the start of one:
    with Adam's defaults 3.2 times in the first step, 6.6 in the 12th, 3.2 in the 100th and 1.3 in
    the 1000th. Lower the learning rate when it wakes, or take a `beta_2` as small as `beta_1`,
    with which no step is longer. `amsgrad` and clipping the gradients do not help, and SGD has no
    such steps.

    Use plain Keras, `layer.trainable = False` before `compile`, where whole layers are frozen for
    good. As a first base it freezes parts of any other template:
    `class FrozenGAN(PartiallyFrozen, GAN)`.

    Yosinski et al. 2014 (arXiv:1411.1792) for transfer with frozen layers; Howard and Ruder 2018
    (arXiv:1801.06146), section 3.3, for gradual unfreezing.

    Args:
        inputs, outputs: of a functional model, as for `keras.Model`; a subclass may have networks
            and a `call` of its own instead.
        freeze: what rests at first: globs over variable paths such as "stem/*" (see
            `customstep.selection`), layers, `selection.Part`s, or a list of these.
        **kwargs: `name` and `trainable`, as for any model.

    Raises:
        ValueError: (once the variables exist) something in `freeze` matches nothing.
        TypeError: it is none of these.

    Example:

        model = PartiallyFrozen(
            inputs=x,
            outputs=y,
            freeze=["stem/*", selection.Part("embedding/*", rows=range(1000))],
        )
        model.compile("adam", "mse")
        model.fit(images, targets, epochs=5, callbacks=[Unfreeze({3: "stem/*"})])
    """

    def __init__(self, *args, freeze=(), **kwargs):
        super().__init__(*args, **kwargs)
        self._resting = _Rest()
        self.freeze(freeze)

    def freeze(self, *what):
        """Lets more of the model rest, from the next step on.

        Args:
            *what: globs over variable paths, layers, `selection.Part`s or lists of these.

        Raises:
            ValueError: one of them matches nothing. A model without variables says so as soon as
                it has some.
            TypeError: one is none of these.
        """
        self._request(selection.union, what)

    def unfreeze(self, *what):
        """Lets frozen parts of the model train again, from the next step on.

        Args:
            *what: as in `freeze`; "*" for all. What is not frozen stays as it is; there is a
                warning about weights that do not train because Keras holds them, by
                `layer.trainable = False`, which only Keras can undo.

        Raises:
            ValueError: one of them matches nothing, or the model has no variables yet.
            TypeError: one is none of these.
        """
        if not self.built:
            raise ValueError(
                f"Nothing of '{self.name}' can be unfrozen yet. Expected a model whose variables "
                "exist; received one that is not built. Call it on a batch first."
            )
        self._settle()
        for entry in keras.tree.flatten(what):
            if held := self._held_by_keras(entry):
                warnings.warn(
                    f"`unfreeze` has nothing to do for {entry!r}. Expected something that `freeze` "
                    f"froze; received {len(held)} variables such as '{held[0]}', which Keras "
                    "holds by `trainable=False`. Set `trainable = True` and compile again; what "
                    "is to train only later, freeze by `freeze`.",
                    stacklevel=2,
                )
        self._request(selection.without, what)

    @property
    def frozen(self):
        """What rests: dict of variable path to True, or to the bool mask of a part.

        A mask broadcasts to the shape of its variable.
        """
        self._settle()
        selected = self._resting.selected
        return {
            paths[0]: True if selected[id(v)].all() else selected[id(v)]
            for v, paths in zip(self.weights, selection.paths(self))
            if id(v) in selected
        }

    def updates(self):
        """Those of the base class, without the variables that rest."""
        self._settle()
        with self._awake():
            updates = super().updates()
        selected = self._resting.selected
        return tuple(
            dataclasses.replace(
                update,
                variables=[v for v in update.variables if not _is_whole(selected.get(id(v)))],
                frozen=[*update.frozen, *self._kept()],
            )
            for update in updates
        )

    def gradients(self, update, batch):
        """Those of the base class, and zero for the frozen part of a variable.

        So it has no share in the norm that an optimizer clips by, and gathers no momentum.
        """
        gradients, objective = super().gradients(update, batch)
        # Again, because a method such as centralization moves what `differentiate` has zeroed.
        return _without_frozen(gradients, update), objective

    def differentiate(self, update, batch, *, by_term=False, **how):
        """Those of the base class, and zero for the frozen part of a variable.

        So it has no share in what `compile(gradients=...)` makes of them, such as the radius of
        `SharpnessAware` or the conflicts of `GradientSurgery`.
        """
        gradients, objective = super().differentiate(update, batch, by_term=by_term, **how)
        if by_term:
            terms = gradients.items()
            return {name: _without_frozen(one, update) for name, one in terms}, objective
        return _without_frozen(gradients, update), objective

    def after_step(self, batch):
        """What the base class does, such as a moving average, and nothing to what is frozen.

        A subclass that has an `after_step` of its own answers for what it adds.
        """
        selected = self._resting.selected
        if not selected or super().after_step.__func__ is StepModel.after_step:
            return super().after_step(batch)
        frozen = [variable for variable in self.weights if id(variable) in selected]
        before = variables.snapshot(frozen)
        super().after_step(batch)
        variables.restore(before, [selected[id(variable)] for variable in frozen])

    def get_config(self):
        with self._awake():  # so that the layers are saved as trainable as they were
            config = super().get_config()
        # `freeze` itself is the method. By position, because names that Keras has made up differ
        # from process to process.
        if self.built:
            self._settle()
            frozen = selection.as_entries(self, self._resting.selected)
        else:
            frozen = [what for _, what in self._resting.requests]
        return {**config, "freeze": keras.saving.serialize_keras_object(frozen)}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        frozen = keras.saving.deserialize_keras_object(config.pop("freeze", []), custom_objects)
        model = super().from_config(config, custom_objects)
        model._request(lambda by_constructor, saved: saved, frozen)
        return model

    def _request(self, change, what):
        if self.built:
            selection.select(self, what)  # a mistake is to change nothing
        self._resting.requests.append((change, what))
        if self.built and self._settle() and self.compiled:
            for make in (self.make_train_function, self.make_test_function):
                make(force=True)

    def _settle(self):
        """Carries out the requests once variables exist; returns whether anything changed."""
        if not self.built or not self._resting.requests:
            return False
        before = selected = self._resting.selected
        for change, what in self._resting.requests:
            selected = change(selected, selection.select(self, what))
        self._resting.requests.clear()
        self._resting.end()
        self._resting.begin(self, selected)
        return not _same(before, selected)

    def _held_by_keras(self, entry):
        """The paths of what an entry selects if Keras alone keeps all of it from training."""
        chosen = selection.select(self, entry)
        trains = any(id(variable) in chosen for variable in self.trainable_variables)
        if trains or selection.intersection(chosen, self._resting.selected):
            return []
        # Statistics, which no optimizer trains, are not held.
        trainable = {id(v) for layer in self._flatten_layers() for v in layer._trainable_variables}
        held = trainable.intersection(chosen)
        named = zip(self.weights, selection.paths(self))
        return [paths[0] for variable, paths in named if id(variable) in held]

    @contextlib.contextmanager
    def _awake(self):
        """Within it, all layers are as trainable as if nothing were frozen."""
        selected = self._resting.selected
        self._resting.end()
        try:
            yield
        finally:
            self._resting.begin(self, selected)

    def _kept(self):
        """Pairs of a variable and its mask, for what would change though no one descends over it.

        These are parts of variables that are descended over, and variables that a layer may assign
        in its forward pass. Snapshots of them are cheap; those of a whole backbone were not.
        """
        assigned = set()
        for layer in self._flatten_layers():
            rests = isinstance(layer, keras.layers.BatchNormalization) and not layer.trainable
            if layer._non_trainable_variables and not rests:
                # A layer with a state may also assign what it wraps, as spectral normalization.
                is_model = isinstance(layer, keras.Model)
                own = layer._non_trainable_variables if is_model else layer.weights
                assigned.update(map(id, own))
        masks = ((variable, self._resting.selected.get(id(variable))) for variable in self.weights)
        return [
            (variable, mask)
            for variable, mask in masks
            if mask is not None and (not mask.all() or id(variable) in assigned)
        ]


class _Rest:
    """What rests in a model.

    An object of its own, because Keras would take layers in a list or tuple for the model's own.

    Attributes:
        requests: list of `(change, what)`, changes of the selection that are yet to be made.
        selected: the selection, as in `customstep.selection`.
    """

    def __init__(self):
        self.requests = []
        self.selected = {}
        self._were_trainable = []

    def begin(self, model, selected):
        """Makes variables that are frozen whole, and layers of nothing else, not trainable."""
        self.selected = selected
        whole = {key for key, mask in selected.items() if mask.all()}
        variables = [v for v in model.weights if id(v) in whole]
        layers = [
            layer
            for layer in model._flatten_layers(include_self=False)
            if layer.trainable
            and layer.weights
            and not layer._flatten_layers(include_self=False)
            and whole.issuperset(map(id, layer.weights))
        ]
        # Layers come first, because they set their variables too.
        self._were_trainable = [(one, one.trainable) for one in (*layers, *variables)]
        for one, _ in self._were_trainable:
            one.trainable = False

    def end(self):
        """Makes trainable again what `begin` has changed, and nothing else."""
        for one, trainable in self._were_trainable:
            one.trainable = trainable
        self._were_trainable = []


def _is_whole(mask):
    return mask is not None and mask.all()


def _same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def _without_frozen(gradients, update):
    """The gradients of an update, with zeros for the frozen parts of its variables."""
    masks = {id(variable): mask for variable, mask in update.frozen}
    return [_zeroed(g, masks.get(id(v))) for g, v in zip(gradients, update.variables)]


def _zeroed(gradient, mask):
    """A gradient, dense or sparse or None, with zeros where the mask is True."""
    if gradient is None or mask is None:
        return gradient
    if isinstance(gradient, tf.IndexedSlices):
        rows = mask if mask.shape[0] == 1 else tf.gather(mask, gradient.indices)
        values = tf.where(rows, tf.zeros_like(gradient.values), gradient.values)
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return tf.where(mask, tf.zeros_like(gradient), gradient)
