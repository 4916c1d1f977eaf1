"""A training step is a tuple of updates; this file runs it.

`Batch` is what comes in, `Objective` what is minimized, `Update` who is trained on it, and
`StepModel` the `keras.Model` whose step runs the updates one after another. A template overrides a
few methods of `StepModel`. What surrounds the step is in `compiling.py`: `compile`, logs and `fit`.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from customstep import replicas, variables
from customstep.checks import check_integer
from customstep.compiling import CompiledModel
from customstep.nonfinite import all_finite, nan_unless, outcomes
from customstep.optimizers import (
    clipped_over_replicas,
    loss_scale,
    overwrites_weights,
    scaled,
    unscaled,
)

__all__ = ["Batch", "Objective", "StepModel", "Update"]


class Batch(NamedTuple):
    """What one step is given: `x`, `y`, `sample_weight`, each a tensor, a nest of them or None.

    `made` is what earlier updates of the step have left, a dict of name to tensor or nest; the
    others are the three of Keras, `batch[:3]`.
    """

    x: Any
    y: Any = None
    sample_weight: Any = None
    made: Mapping[str, Any] = {}

    @property
    def size(self):
        """The number of examples: an int where the graph knows it, else an int32 scalar."""
        x = next(tensor for tensor in keras.tree.flatten(self.x) if tensor is not None)
        return x.shape[0] if x.shape[0] is not None else tf.shape(x)[0]

    def part(self, index, of):
        """Part `index` of the batch cut into `of` parts, equal up to one example, never empty."""
        if of == 1:
            return self
        start, stop = index * self.size // of, (index + 1) * self.size // of
        stop = max(stop, start + 1) if isinstance(stop, int) else tf.maximum(stop, start + 1)
        return keras.tree.map_structure(
            lambda t: None if t is None else t[start:stop], self, none_is_leaf=True
        )


class Objective(NamedTuple):
    """What an update minimizes: the sum of `terms`.

    Attributes:
        terms: dict of name to float scalar, each a plain mean over the batch, logged by its name.
        y_pred: the predictions for the metrics passed to `compile`, or None where there are none.
        logs: dict of name to float scalar, means over the batch that are logged and not minimized.
        made: dict of name to tensor or nest, one entry for each example, that the updates after
            this one find in `Batch.made` and need not make again. No gradient flows through it.
    """

    terms: Mapping[str, Any]
    y_pred: Any = None
    logs: Mapping[str, Any] = {}
    made: Mapping[str, Any] = {}

    @property
    def total(self):
        """The sum of the terms, a scalar of `keras.config.floatx()`.

        Raises:
            ValueError: there is no term, or one is not a scalar, whose gradient would be that of
                a sum over the batch.
        """
        for name, term in self.terms.items():
            if len(shape := keras.ops.shape(term)):
                raise ValueError(
                    f"The term '{name}' is not a scalar. Expected a mean over the batch; received "
                    f"the shape {tuple(shape)}. Return `tf.reduce_mean(...)` of it."
                )
        if not self.terms:
            raise ValueError(
                "An objective has no terms. Expected at least one; received an empty dict. Return "
                "`Objective({name: scalar})`."
            )
        terms = [keras.ops.cast(term, keras.config.floatx()) for term in self.terms.values()]
        return functools.reduce(operator.add, terms)


@dataclasses.dataclass(frozen=True)
class Update:
    """One descent in a training step.

    Attributes:
        name: the key of its optimizer in `compile`.
        objective: callable `(batch, training) -> Objective`.
        variables: the trainable variables it descends over.
        times: how often the update is repeated within one step.
        slices: into how many equal parts the batch is cut; repetition `i` is given part
            `i % slices`, so `times=5, slices=5` shows every repetition fresh examples.
        known: all variables that its optimizer keeps a state of, always in the same order; None
            for `variables`. Those that are not among `variables` rest for the time being.
        frozen: pairs of a variable and a bool mask, of the variable's shape or one that broadcasts
            to it. Where the mask is True the variable does not change, whatever the forward pass
            or the optimizer does to it.
    """

    name: str
    objective: Callable[[Batch, bool], Objective]
    variables: Sequence[keras.Variable]
    times: int = 1
    slices: int = 1
    known: Sequence[keras.Variable] | None = None
    frozen: Sequence[tuple[keras.Variable, Any]] = ()

    def __post_init__(self):
        check_integer("times", self.times, 1)
        check_integer("slices", self.slices, 1)
        if self.known is None:
            object.__setattr__(self, "known", self.variables)

    @contextlib.contextmanager
    def kept(self, at_rest):
        """Within it, what is frozen may change; at its end it is as it was.

        Args:
            at_rest: includes the variables that rest, for an optimizer that overwrites all weights
                it knows by their averages.
        """
        kept = list(self.frozen)
        if at_rest:
            trained = {id(variable) for variable in self.variables}
            kept += [(variable, True) for variable in self.known if id(variable) not in trained]
        before = variables.snapshot(variable for variable, _ in kept)
        yield
        variables.restore(before, (mask for _, mask in kept))


@keras.saving.register_keras_serializable("customstep")
class StepModel(CompiledModel):
    """A `keras.Model` whose training step is a tuple of updates.

    Use it as it is, and it is `keras.Model`, bit for bit. Override the methods under "Override
    these" to change what a step does. Build it from a functional graph,
    `MyStep(inputs=..., outputs=...)`, from networks given to the constructor, or with a `call` of
    its own. Constructor arguments kept in attributes of the same names are saved with the model.

    Attributes:
        terms: the names of all terms and logs, beside `loss`, that the objectives return. Their
            means over an epoch are logged; one that is not declared here is an error.

    Example:

        class Autoencoder(StepModel):
            terms = ("error", "sparsity")

            def objective(self, batch, training):
                x, code = self(batch.x, training=training)
                error = tf.reduce_mean((x - batch.x) ** 2)
                return Objective({"error": error, "sparsity": tf.reduce_mean(tf.abs(code))})
    """

    terms: tuple[str, ...] = ()

    # -- Override these ---------------------------------------------------------------------

    def preprocess(self, batch, training):
        """The batch that the step is to see: augmentation, normalisation, mixup.

        Args:
            batch: `Batch`, as the data set gave it.
            training: True in `fit`, False in `evaluate` and `predict`.

        Returns:
            `Batch`.
        """
        return batch

    def objective(self, batch, training):
        """What `fit` minimizes and `evaluate` reports: by default the loss passed to `compile`.

        Args:
            batch: `Batch`, preprocessed.
            training: True in `fit`, False in `evaluate`.

        Returns:
            `Objective` with means over the batch; the replica count is not its concern. The loss
            passed to `compile` contains the regularizers of the layers; an objective of your own
            adds `sum(self.losses)` where there are any.
        """
        y_pred = self(batch.x, training=training)
        return Objective({"loss": self.compiled_loss(batch, y_pred, training)}, y_pred)

    def compiled_loss(self, batch, y_pred, training):
        """The loss passed to `compile`, and the regularizers of the layers, for an objective.

        Args:
            batch: `Batch`.
            y_pred: predictions of its `y`.
            training: as the objective is given it.

        Returns:
            Float scalar, the mean over the batch, each example times its weight.
        """
        self._loss_is_used = True
        loss = self._compute_loss(  # as Keras calls `compute_loss`, which may have no `training`
            batch.x, batch.y, y_pred, batch.sample_weight, training=training
        )
        return replicas.whole(loss)

    def updates(self):
        """Who is trained, in which order, how often: by default all variables on `objective`.

        Returns:
            Tuple of `Update`.
        """
        return (Update("model", self.objective, self.trainable_variables),)

    def gradients(self, update, batch):
        """The gradients of an update: `differentiate`, and what `compile(gradients=...)` adds.

        Args:
            update: `Update`.
            batch: `Batch`, the part of the batch that this repetition is given.

        Returns:
            The gradients, one for each of `update.variables` or None where it has none, free of
            the loss scale that float16 needs; and the `Objective` they were taken of.
        """
        methods = self._gradient_methods.get(update.name, ())
        state = variables.snapshot(self.variables if methods else ())
        compute = functools.partial(self.differentiate, update, batch, state=state)
        for method in methods:
            compute = functools.partial(method, compute, update.variables)
        return compute()

    def after_step(self, batch):
        """What happens once all updates of a step are done, such as a moving average.

        Args:
            batch: `Batch`, preprocessed.
        """

    def postprocess(self, outputs):
        """What `predict` returns for the outputs of the model."""
        return outputs

    # -- The step ---------------------------------------------------------------------------

    def train_step(self, data):
        batch = self._receive(data, training=True)
        self._loss_is_used = False
        logs = {}
        for update in self.updates():
            for repetition in range(update.times):
                part = batch.part(repetition % update.slices, update.slices)
                objective = self.descend(update, part)
                logs.update(self.track(objective, part))
            batch = _with_made(batch, objective)
        self._check_metrics_are_fed()
        self._check_loss_is_used()
        self.after_step(batch)
        self.step_state.variables["step"].assign_add(1)
        return {**logs, **self._scheduled_rates()}

    def test_step(self, data):
        batch = self._receive(data, training=False)
        logs = {}
        for objective in dict.fromkeys(update.objective for update in self.updates()):
            evaluated = _evaluate(objective, batch, False)
            logs.update(self._track(evaluated, batch))
            batch = _with_made(batch, evaluated)
        self._check_metrics_are_fed()
        return {name: value for name, value in logs.items() if name not in self._counters}

    def predict_step(self, data):
        batch = self._receive(data, training=False)
        return self.postprocess(replicas.on_examples(self, batch.x))

    def descend(self, update, batch):
        """One descent: gradients, the rate in force, and the optimizer's step.

        Where `compile(when=...)` has a condition that does not hold, only the objective is
        evaluated, and nothing changes.

        Args:
            update: `Update`.
            batch: `Batch`, the part of the batch that this repetition is given.

        Returns:
            The `Objective` as it was before the descent; its terms are NaN where
            `compile(nonfinite="skip")` has skipped the descent.
        """
        if not update.variables:
            warnings.warn(f"The update '{update.name}' has no variables to train.", stacklevel=2)
        if update.name in self._conditions:
            holds = self._conditions[update.name](self.step)
            self._count("active", update, tf.cast(holds, tf.float32))
            objective, masks = replicas.cond(
                holds,
                lambda batch: _with_masks(self._descend(update, batch)),
                lambda batch: _with_masks(self._rest(update, batch)),
                batch,
            )
            _attach_masks(objective, masks)
            self._conditions[update.name].observe(objective, batch.size)
        else:
            objective = self._descend(update, batch)
        if self._nonfinite == "skip":
            nonfinite = tf.cast(~all_finite([objective.total]), tf.float32)
            self._count("nonfinite", update, replicas.share(nonfinite))
        return objective

    def differentiate(self, update, batch, *, at=None, by_term=False, state=()):
        """The plain gradients of an update, free of any loss scale.

        Args:
            update: `Update`.
            batch: `Batch`.
            at: None, or tensors to take in the place of the values of `update.variables`. What
                the forward pass changes, such as moving statistics, is then dropped.
            by_term: returns a dict of term name to gradients rather than those of the sum.
            state: pairs of a variable and the value it has where `at` is given, such as those
                before an earlier evaluation, whose dropout this one is then to repeat.

        Returns:
            The gradients, one for each of `update.variables` or None where it has none; and the
            `Objective` they were taken of.
        """
        scale = loss_scale(self.optimizers[update.name])
        weight, present = replicas.weight_and_presence(batch.size)
        # Watching the sources alone saves the backward pass of all that is not trained here.
        with tf.GradientTape(persistent=by_term, watch_accessed_variables=False) as tape:
            if at is None:
                sources = update.variables
                tape.watch([variable.value for variable in sources])
                with self._statistics_of_examples(present):
                    objective = _evaluate(update.objective, batch, True)
            else:
                sources = at
                tape.watch(sources)
                values = [*state, *zip(update.variables, at)]
                with variables.without_effects(self.variables, values):
                    objective = _evaluate(update.objective, batch, True)
            losses = objective.terms if by_term else {"loss": objective.total}
            losses = {
                name: scaled(tf.cast(weight * loss, keras.config.floatx()), scale)
                for name, loss in losses.items()
            }
        gradients = {
            name: [
                replicas.of_examples(unscaled(gradient, scale), batch.size)
                for gradient in tape.gradient(loss, sources)
            ]
            for name, loss in losses.items()
        }
        return (gradients if by_term else gradients["loss"]), objective

    def track(self, objective, batch):
        """Adds an objective to the running means of this epoch and to the compiled metrics.

        Args:
            objective: `Objective` of `batch`.
            batch: `Batch`, whose size is the weight of the means.

        Returns:
            Dict of name to float scalar, all metrics of the model so far.
        """
        if self._nonfinite != "skip":
            return self._track(objective, batch)
        self._build_metrics(batch.y, objective.y_pred)  # so that there is a state to go back to
        before = variables.snapshot(self.metrics_variables)
        logs = self._track(objective, batch)
        variables.restore(before, itertools.repeat(~all_finite([objective.total])))
        return {**logs, **self._results()}

    def _track(self, objective, batch):
        self._build_metrics(batch.y, objective.y_pred)
        values = {**objective.logs, **objective.terms}
        for name in values:
            if name not in self._trackers:
                raise ValueError(
                    f"{type(self).__name__} returned a term that it does not declare. Expected "
                    f"one of {sorted(self._trackers)}; received '{name}'. Add it to the class: "
                    f"`terms = {(*self.terms, name)}`."
                )
        values["loss"] = objective.total
        for name, tracker in self._trackers.items():
            if name in values:
                tracker.update_state(values[name], sample_weight=batch.size)
        if objective.y_pred is None:
            return self._results()
        logs = self.compute_metrics(
            batch.x, batch.y, objective.y_pred, sample_weight=batch.sample_weight
        )
        self._check_names_differ(values)
        return logs

    def _results(self):
        if self._metrics_wait_for_predictions:  # which another update may have
            return {name: tracker.result() for name, tracker in self._trackers.items()}
        return self.get_metrics_result()

    def _descend(self, update, batch):
        with update.kept(at_rest=overwrites_weights(self.optimizers[update.name])):
            match self._nonfinite:
                case "skip":
                    objective = self._descend_or_skip(update, batch)
                case "stop":
                    objective = self._descend_or_stop(update, batch)
                case None:
                    gradients, objective = self.gradients(update, batch)
                    self._apply(update, *gradients)
        if update.name in self._schedules:
            self._schedules[update.name].observe(objective, batch.size)
        return objective

    def _descend_or_skip(self, update, batch):
        statistics = variables.snapshot(self.non_trainable_weights)
        metrics = variables.snapshot(self.metrics_variables)
        gradients, objective = self.gradients(update, batch)
        found = [objective.total, *gradients, *outcomes(statistics)]
        finite = replicas.every(all_finite(found))
        variables.restore([*statistics, *metrics], itertools.repeat(~finite))
        apply = functools.partial(self._apply, update)
        if isinstance(self.optimizers[update.name], keras.optimizers.LossScaleOptimizer):
            # It skips the step itself, and lowers its scale, where it sees that on its replica.
            spoiled = tf.where(finite, 1.0, math.nan)
            apply(*(scaled(gradient, spoiled) for gradient in gradients))
        else:
            replicas.cond(finite, apply, lambda *gradients: None, *gradients)
        return nan_unless(finite, objective)

    def _descend_or_stop(self, update, batch):
        before = variables.snapshot([*self.variables, *self.metrics_variables])
        gradients, objective = self.gradients(update, batch)
        self._stop.unless_finite(self, before, update, batch, objective, gradients)
        self._apply(update, *gradients)
        return objective

    @contextlib.contextmanager
    def _statistics_of_examples(self, present):
        """Within it, a replica without examples, whose means are NaN, spoils no statistics.

        Args:
            present: whether all replicas have examples.
        """
        if present is True:
            yield
            return
        changed = self.non_trainable_weights
        before = [value for _, value in variables.snapshot(changed)]
        yield

        def restore(*before):
            spoiled = [tf.not_equal(variable.value, variable.value) for variable in changed]
            variables.restore(zip(changed, before), spoiled)

        replicas.cond(present, lambda *before: None, restore, *before)

    def _rest(self, update, batch):
        with variables.without_effects(self.variables) as scope:
            objective = _evaluate(update.objective, batch, True)
        for variable in self.metrics_variables:  # the objective was measured, by its metrics too
            if (value := scope.get_current_value(variable)) is not None:
                variable.assign(value)
        if self._nonfinite == "skip":
            return nan_unless(replicas.every(all_finite([objective.total])), objective)
        return objective

    def _apply(self, update, *gradients):
        optimizer = self.optimizers[update.name]
        if update.name in self._schedules:
            step = tf.cast(optimizer.iterations, tf.float32)
            optimizer.learning_rate = self._schedules[update.name](step)
        gradients = clipped_over_replicas(optimizer, gradients)
        scale = loss_scale(optimizer)
        optimizer.apply([scaled(gradient, scale) for gradient in gradients], update.variables)

    @property
    def _trains_all_at_once(self):
        """Whether there is one update of all variables, as Keras has it."""
        return type(self).updates is StepModel.updates

    def _receive(self, data, training):
        batch = Batch(*keras.utils.unpack_x_y_sample_weight(data))
        batch = self.preprocess(batch, training=training)
        if not self.built:  # a symbolic call makes the variables before `updates` lists them
            self(keras.tree.map_structure(_symbol, batch.x))
        if training and not self.optimizer.built:
            self._build_optimizers()
        return batch

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Under a strategy Keras makes all variables from a batch before it traces the step. It
        # has to be one that `preprocess` has seen; its shapes will do.
        if self._fitting is not None and iterator is not None:
            self._fitting.receive(iterator)
        missing = not self.built and self._fitting is not None and self._fitting.needs_variables
        if self._distribute_strategy is None and not missing:
            return
        if iterator is not None:  # a batch of a generator would be lost
            data_batch = replicas.specification(iterator._get_iterator())

        def preprocess(data):
            batch = Batch(*keras.utils.unpack_x_y_sample_weight(data))
            return self.preprocess(batch, training=False)

        trace = tf.function(preprocess, autograph=False)  # as the step
        batch = trace.get_concrete_function(data_batch).structured_outputs
        self._symbolic_build(data_batch=tuple(batch[:3]))


def _evaluate(objective, batch, training):
    """The objective of a batch; 0 on a replica whose part of it is empty and so has no mean."""
    found = objective(batch, training)
    if not isinstance(found, Objective):
        raise TypeError(
            f"An objective returned something else. Expected an `Objective`; received "
            f"{type(found).__name__}. Return `Objective({{'name': scalar}})`."
        )
    if replicas.count() == 1:
        return found

    def mean(value):
        return tf.where(tf.greater(batch.size, 0), value, tf.zeros_like(value))

    means = {
        kind: {name: mean(value) for name, value in values.items()}
        for kind, values in (("terms", found.terms), ("logs", found.logs))
    }
    return found._replace(**means)


def _with_made(batch, objective):
    """The batch as the updates after that of this objective are given it."""
    return batch._replace(made={**batch.made, **objective.made})


def _with_masks(objective):
    """An objective and the masks that Keras has put on its predictions, which `tf.cond` loses."""
    outputs = keras.tree.flatten(objective.y_pred)
    return objective, [getattr(output, "_keras_mask", None) for output in outputs]


def _attach_masks(objective, masks):
    for tensor, mask in zip(keras.tree.flatten(objective.y_pred), masks):
        if mask is not None:
            tensor._keras_mask = mask


def _symbol(tensor):
    if tensor is None:  # an optional input
        return None
    return keras.KerasTensor(tensor.shape, keras.backend.standardize_dtype(tensor.dtype))
