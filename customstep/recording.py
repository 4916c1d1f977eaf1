"""Runs one training step of any Keras model and records what its optimizers and networks do."""

import contextlib
import dataclasses
import functools
import inspect
import itertools
import math
import time

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from customstep import replicas, variables
from customstep.optimizers import OptimizerGroup, loss_scale, unscaled

__all__ = ["Descent", "Recorder", "networks_of", "noisy_layers", "optimizers_of"]


@dataclasses.dataclass
class Descent:
    """One use of an optimizer.

    Attributes:
        name: of the update, or of the optimizer in a hand-written step.
        variables: what it descends over.
        optimizer: `keras.optimizers.Optimizer`, None where a condition held the update back.
        rate: the learning rate in force, a float.
        terms, logs: dict of name to float; empty for a hand-written step.
        term_gradients: dict of term to the norm of its own gradient, None where it has none;
            empty where there is one term only, or for a hand-written step.
        finite: whether every gradient was finite.
        is_scaled: False where the optimizer divides by a loss scale that no one multiplied by.
        gradients: dict of variable id to squared norm, for variables that have a gradient.
        weights, changes: dict of variable id to squared norm, of its value and of its change.
        moved: ids of all weights of the model that changed since the descent before.
        seconds: dict of part to seconds.
    """

    name: str
    variables: list
    optimizer: keras.optimizers.Optimizer | None = None
    rate: float | None = None
    terms: dict = dataclasses.field(default_factory=dict)
    logs: dict = dataclasses.field(default_factory=dict)
    term_gradients: dict = dataclasses.field(default_factory=dict)
    finite: bool = True
    is_scaled: bool = True
    gradients: dict | None = None
    weights: dict = dataclasses.field(default_factory=dict)
    changes: dict = dataclasses.field(default_factory=dict)
    moved: set = dataclasses.field(default_factory=set)
    seconds: dict = dataclasses.field(default_factory=dict)


class Recorder:
    """Records one step through methods that it puts in front of the model's own.

    A `StepModel` is recorded through `descend`, `gradients` and the other verbs of its step; any
    other model through the `apply` of its optimizers. Nothing of the model's class is changed.

    Args:
        model: `keras.Model`.
        optimizers: dict of name to `keras.optimizers.Optimizer`, as of `optimizers_of`.

    Attributes:
        descents: list of `Descent`, in order.
        logs: dict of name to float, what the step returned.
        moved: ids of the variables, random states among them, that the step changed.
        moved_after: ids of the weights that changed after the last descent.
        seconds: dict of part to seconds, without those of the descents.
        draws: how often the step called `tf.random.normal` and the like. While it is recorded,
            they give the same noise in every run, and leave the state of TensorFlow's generator.
    """

    def __init__(self, model, optimizers):
        self.model = model
        self.optimizers = optimizers
        self.descents = []
        self.seconds = {}
        self.draws = 0
        self._open = None
        self._scaled = set()
        self._clock = _Clock()

    def run(self, data, step=None):
        """Runs the step, by default `train_step`, on a batch as `train_step` takes it."""
        self._start = self._last = self._values()
        began = self._clock.now()
        with self._in_front():
            logs = (step or self.model.train_step)(data)
        total = self._clock.now() - began
        parts = [*self.seconds.values(), *(s for d in self.descents for s in d.seconds.values())]
        self.seconds["everything else"] = total - sum(parts)
        last, end = self._last, self._values()
        self.moved_after = _changed(last, end)
        self.moved = _changed(self._start, end)
        self.logs = {}
        if isinstance(logs, dict):
            flat = keras.tree.flatten_with_path(logs)
            self.logs = {"/".join(map(str, path)): float(np.mean(value)) for path, value in flat}
        return self

    @property
    def numbers(self):
        """All that tells one step from another: the logs and the gradients' squared norms."""
        squares = (sum((d.gradients or {}).values()) for d in self.descents)
        return {**self.logs, **{f"gradient {i}": square for i, square in enumerate(squares)}}

    @contextlib.contextmanager
    def _in_front(self):
        verbs = {
            "preprocess": functools.partial(self._timed, "preprocess"),
            "descend": self._descend,
            "gradients": self._gradients,
            "track": functools.partial(self._timed, "metrics"),
            "after_step": functools.partial(self._timed, "after_step"),
        }
        with contextlib.ExitStack() as stack:
            if hasattr(self.model, "descend"):
                for name, method in verbs.items():
                    stack.enter_context(_in_front_of(self.model, name, method))
            for name, optimizer in self.optimizers.items():
                apply = functools.partial(self._apply, name)
                scale_loss = functools.partial(self._scale_loss, name)
                stack.enter_context(_in_front_of(optimizer, "apply", apply))
                stack.enter_context(_in_front_of(optimizer, "scale_loss", scale_loss))
            for name in ("normal", "truncated_normal", "uniform"):
                draw = functools.partial(self._draw, getattr(tf.random, f"stateless_{name}"))
                stack.enter_context(_in_front_of(tf.random, name, draw))
            yield

    def _timed(self, part, method, *args, **kwargs):
        with self._clock.measured(self.seconds, part):
            return method(*args, **kwargs)

    def _descend(self, method, update, batch):
        self._open = descent = Descent(update.name, list(update.variables))
        objective = method(update, batch)
        self._open = None
        descent.terms = {name: float(np.mean(v)) for name, v in objective.terms.items()}
        descent.logs = {name: float(np.mean(v)) for name, v in objective.logs.items()}
        self._close(descent)
        return objective

    def _gradients(self, method, update, batch):
        if self._open is None:  # a step of its own order, seen through its optimizers
            return method(update, batch)
        with self._clock.paused():
            before = variables.snapshot(self.model.variables)
        with self._clock.measured(self._open.seconds, "gradients"):
            gradients, objective = method(update, batch)
        self._keep_gradients(self._open, gradients)
        if len(objective.terms) > 1:
            with self._clock.paused():
                self._open.term_gradients = self._by_term(update, batch, before)
        return gradients, objective

    def _by_term(self, update, batch, before):
        """The norm of each term's gradient, of the same noise as that of their sum."""
        after = variables.snapshot(self.model.variables)
        variables.restore(before, itertools.repeat(True))
        by_term, _ = self.model.differentiate(update, batch, by_term=True)
        variables.restore(after, itertools.repeat(True))
        squares = {
            name: [_square(_array(gradient)) for gradient in gradients if gradient is not None]
            for name, gradients in by_term.items()
        }
        return {name: math.sqrt(sum(one)) if one else None for name, one in squares.items()}

    def _apply(self, name, method, grads, trainable_variables=None):
        optimizer = self.optimizers[name]
        grads = list(grads)
        descent = self._open
        if descent is None:
            if trainable_variables is None:
                trainable_variables = optimizer._trainable_variables
            descent = Descent(name, list(trainable_variables))
        descent.optimizer = optimizer
        descent.rate = float(optimizer.learning_rate)
        has_scale = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        descent.is_scaled = name in self._scaled or not has_scale
        if descent.gradients is None:
            scale = loss_scale(optimizer)
            self._keep_gradients(descent, [unscaled(gradient, scale) for gradient in grads])
        with self._clock.measured(descent.seconds, "apply"):
            method(grads, trainable_variables)
        self._scaled.discard(name)
        if self._open is None:
            self._close(descent)

    def _scale_loss(self, name, method, loss):
        self._scaled.add(name)
        return method(loss)

    def _draw(self, stateless, method, shape, *args, seed=None, **kwargs):
        arguments = inspect.signature(method).bind(shape, *args, **kwargs).arguments
        self.draws += 1
        return stateless(seed=(self.draws, 0 if seed is None else seed), **arguments)

    def _keep_gradients(self, descent, gradients):
        with self._clock.paused():
            pairs = [(v, _array(g)) for v, g in zip(descent.variables, gradients) if g is not None]
            descent.gradients = {id(v): _square(gradient) for v, gradient in pairs}
            descent.finite = all(np.isfinite(gradient).all() for _, gradient in pairs)

    def _close(self, descent):
        with self._clock.paused():
            before, after = self._last, self._values()
            for variable in descent.variables:
                if (old := before.get(id(variable))) is not None:
                    old = old.astype("float64")
                    descent.weights[id(variable)] = _square(old)
                    descent.changes[id(variable)] = _square(after[id(variable)] - old)
            descent.moved = _changed(before, after)
            self._last = after
        self.descents.append(descent)

    def _values(self):
        seeds = [layer.seed_generator.state for layer in noisy_layers(self.model)]
        return {id(v): np.array(v.value) for v in [*self.model.weights, *seeds]}


class _Clock:
    """Seconds without those that the recording itself takes."""

    def __init__(self):
        self._lost = 0.0

    def now(self):
        replicas.wait_for_devices()
        return time.perf_counter() - self._lost

    @contextlib.contextmanager
    def paused(self):
        began = self.now()
        yield
        self._lost += self.now() - began

    @contextlib.contextmanager
    def measured(self, seconds, part):
        began = self.now()
        yield
        seconds[part] = seconds.get(part, 0.0) + self.now() - began


def optimizers_of(model, objects):
    """The optimizers a model uses, by name.

    Args:
        model: `keras.Model`.
        objects: all objects that it reaches, as of `rewind.Snapshot`.

    Returns:
        Dict of name to optimizer. The name is that of an update, of the model's attribute, or the
        optimizer's own. Optimizers inside of others are left out.
    """
    found = [one for one in objects if isinstance(one, keras.optimizers.Optimizer)]
    inner = {id(getattr(one, "inner_optimizer", None)) for one in found}
    found = [o for o in found if id(o) not in inner and not isinstance(o, OptimizerGroup)]
    names = {id(value): name for name, value in vars(model).items() if name != "optimizer"}
    if hasattr(model, "descend"):
        names = {id(optimizer): name for name, optimizer in model.optimizers.items()}
    else:
        names.setdefault(id(model.optimizer), "optimizer")
    return _unique((names.get(id(one), one.name), one) for one in found)


def networks_of(model):
    """The parts of a model that a person thinks of as its networks.

    Returns:
        Dict of name to list of weights, for the layers directly in the model, or in the one
        network that it consists of. Weights that are in none of them are called "own weights".
    """
    holder, children = model, [layer for layer in model.layers if layer.weights]
    while len(children) == 1 and getattr(children[0], "layers", None):
        holder = children[0]
        children = [layer for layer in holder.layers if layer.weights]
    names = {id(value): name for name, value in vars(holder).items() if name[0] != "_"}
    networks = _unique((names.get(id(one), one.name), one.weights) for one in children)
    inside = {id(weight) for weights in networks.values() for weight in weights}
    own = [weight for weight in model.weights if id(weight) not in inside]
    return {**networks, **({"own weights": own} if own else {})}


def noisy_layers(model):
    """The layers that draw noise in training and none elsewhere."""
    kinds = (layers.Dropout, layers.GaussianDropout, layers.GaussianNoise, layers.AlphaDropout)
    found = (layer for layer in model._flatten_layers() if isinstance(layer, kinds))
    return [layer for layer in found if getattr(layer, "seed_generator", None) is not None]


def _unique(pairs):
    result = {}
    for name, value in pairs:
        number = sum(key == name or key.startswith(f"{name} (") for key in result)
        result[f"{name} ({number + 1})" if number else name] = value
    return result


@contextlib.contextmanager
def _in_front_of(owner, name, method):
    """Within it, `owner.name(...)` is `method(what it was, ...)`."""
    # Past `__setattr__`, with which Keras tracks what a model or an optimizer holds.
    attributes, nothing = vars(owner), object()
    before = attributes.get(name, nothing)
    attributes[name] = functools.partial(method, getattr(owner, name))
    try:
        yield
    finally:
        attributes.pop(name)
        if before is not nothing:
            attributes[name] = before


def _array(gradient):
    return np.array(tf.convert_to_tensor(gradient)).astype("float64")  # a sparse one made dense


def _square(array):
    return float(np.sum(np.square(array)))


def _changed(before, after):
    both = before.keys() & after.keys()
    return {key for key in both if before[key].tobytes() != after[key].tobytes()}
