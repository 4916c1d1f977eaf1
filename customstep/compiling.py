"""What surrounds a training step: `compile`, the optimizers, the logs, `fit`."""

import contextlib
import inspect
import tempfile
import types
import warnings

import keras
import tensorflow as tf

from customstep import replicas, variables
from customstep.checks import check_number
from customstep.fitting import FitCallbacks
from customstep.nonfinite import Stop, check_argument
from customstep.optimizers import (
    OptimizerGroup,
    check_rates_are_fixed,
    methods_by_update,
    optimizers_by_update,
    schedules_by_update,
    with_loss_scale,
)
from customstep.resuming import Resume
from customstep.saving import PersistentModel, SavedVariables

__all__ = ["CompiledModel"]

_FIT = inspect.signature(keras.Model.fit)  # read here, for what wraps it later may name nothing
_FIT_NAMES = list(_FIT.parameters)[1:]


class CompiledModel(PersistentModel):
    """A `keras.Model` that is compiled for several updates, each with what is its own.

    The base of `StepModel`, which defines `terms`, `updates` and the step, and keeps the counts
    and means that are logged here.
    """

    # Read-only mappings, because Keras would track, and save, what a dict holds.
    _trackers = _counters = _compile_arguments = types.MappingProxyType({})
    _schedules = _conditions = _gradient_methods = types.MappingProxyType({})
    _nonfinite = None
    _fitting = None  # the callbacks of the `fit` that is running
    resumed = None  # what `Resume` knows of the run that this model belongs to

    def compile(
        self,
        optimizer="rmsprop",
        loss=None,
        metrics=None,
        *,
        schedule_lr=None,
        gradients=None,
        when=None,
        nonfinite=None,
        auto_scale_loss=True,
        **kwargs,
    ):
        """Configures the model for training, as `keras.Model.compile` does.

        Args:
            optimizer: an optimizer or its name, or a dict of update name to one for each update.
            loss: as in Keras.
            metrics: as in Keras.
            schedule_lr: a callable `step -> learning rate` that sets the rate before every
                descent, or a dict of update name to one. `step` is a float32 scalar, the number
                of descents its optimizer has done. The rate in force is logged as
                `learning_rate`, or `learning_rate_<update>` where there are several updates.
            gradients: what is done to the gradients before the optimizer has them: one of the
                methods in `customstep.gradients` or a list of them, the first nearest to the loss,
                or a dict of update name to such.
            when: a condition, a callable `step -> bool`, or a dict of update name to one. The
                update descends in the steps where it holds; in the others its objective is
                evaluated only. `step` is a float32 scalar, the number of steps done. The share of
                the steps where it held is logged as `active`, or `active_<update>`.
            nonfinite: what becomes of an update that is NaN or infinite, on one replica at least:
                its objective, a gradient, or a statistic that was finite before. None lets it
                spoil the weights, as Keras does. "skip" skips it: weights, statistics, optimizer
                and metrics stay as they were. How often that happened in an epoch is logged as
                `nonfinite`, or `nonfinite_<update>`; `after_step` and the updates of other
                variables run on. "stop" ends training with a `FloatingPointError` that names the
                update, the term or the variable, and the step. Nothing of that update is applied,
                nor of what would follow it; what came before it in the same step stays. Gradients
                that overflow float16 are left to the `LossScaleOptimizer`, and evaluation and
                updates at rest do not stop. Not under XLA.
            auto_scale_loss: wraps every optimizer in a `LossScaleOptimizer` where a layer
                computes in float16.
            **kwargs: all other arguments of `keras.Model.compile`, by name.

        Raises:
            ValueError: the names of optimizers, schedules, methods or conditions are not those
                of the updates; or `nonfinite` is no choice, or cannot be had under XLA.
            TypeError: a schedule, a method or a condition is not callable.
        """
        arguments = dict(kwargs, optimizer=optimizer, loss=loss, metrics=metrics)
        arguments.update(
            schedule_lr=schedule_lr,
            gradients=gradients,
            when=when,
            nonfinite=nonfinite,
            auto_scale_loss=auto_scale_loss,
        )
        if isinstance(self.terms, str):
            raise TypeError(
                f"The terms of {self.__class__.__name__} are not a tuple. Expected a tuple of "
                f"names; received {self.terms!r}. Write `terms = ({self.terms!r},)`."
            )
        check_argument(nonfinite, jit_compile=kwargs.get("jit_compile", "auto"))
        if nonfinite == "stop":
            kwargs["jit_compile"] = False  # which "auto" would not be on a GPU
        if not self.built and self._is_made_of_built_layers():
            self.built = True
        updates = self.updates()
        names = [update.name for update in updates]
        optimizers = optimizers_by_update(names, optimizer)
        schedules = schedules_by_update("schedule_lr", schedule_lr, names)
        check_rates_are_fixed(schedules, optimizers)
        conditions = schedules_by_update("when", when, names, tf.bool)
        methods = methods_by_update(gradients, names)
        if auto_scale_loss and any(
            layer.compute_dtype == "float16" for layer in self._flatten_layers()
        ):
            optimizers = {name: with_loss_scale(one) for name, one in optimizers.items()}
        replicas.check_arguments(
            self._distribute_strategy, optimizers, jit_compile=kwargs.get("jit_compile", False)
        )
        if kwargs.get("steps_per_execution", 1) != 1:
            kwargs["steps_per_execution"] = replicas.steps_per_execution(
                self._distribute_strategy, kwargs["steps_per_execution"]
            )
        if self._trains_all_at_once:
            [optimizer] = optimizers.values()  # over all variables, as Keras expects
        else:
            optimizer = OptimizerGroup(optimizers, self.updates)
        super().compile(optimizer, loss, metrics=metrics, auto_scale_loss=False, **kwargs)
        tracked = ("loss", *self.terms) if len(updates) == 1 else self.terms
        self._check_names_differ(tracked)
        trackers = {name: keras.metrics.Mean(name=name) for name in tracked}
        self._trackers = types.MappingProxyType(trackers)
        counters = [keras.metrics.Mean(self._label("active", name)) for name in conditions]
        if nonfinite == "skip":
            counters += [keras.metrics.Sum(self._label("nonfinite", name)) for name in names]
        self._counters = types.MappingProxyType({metric.name: metric for metric in counters})
        self._schedules, self._conditions, self._gradient_methods = schedules, conditions, methods
        self._nonfinite, self._stop = nonfinite, Stop()
        self._loss_is_used = False
        # In a tuple, which hides it from Keras, because it is no layer and no weight.
        self._step_state = (_step_state(schedules, conditions),)
        self._compile_arguments = types.MappingProxyType(arguments)
        self.resumed = None
        if self.built:  # Keras restores the state of built optimizers only
            self._build_optimizers()

    def get_compile_config(self):
        return keras.saving.serialize_keras_object(dict(self._compile_arguments))

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))

    @property
    def optimizers(self):
        """Dict of update name to its optimizer."""
        if not self.compiled:
            return {}
        if isinstance(self.optimizer, OptimizerGroup):
            return dict(zip(self.optimizer.names, self.optimizer.optimizers))
        return {update.name: self.optimizer for update in self.updates()}

    @property
    def steps(self):
        """How many training steps were done since `compile`, an int."""
        return int(self.step_state.variables["step"].numpy()) if self.compiled else 0

    @property
    def step(self):
        """The number of steps done, as a float32 scalar for schedules in the graph."""
        if not self.compiled:
            return tf.constant(0.0)
        return tf.cast(self.step_state.variables["step"].value, tf.float32)

    @property
    def step_state(self):
        """The step's number and the states of schedules; Keras finds and saves them here."""
        return self._step_state[0]

    def _saved_groups(self):
        return [*super()._saved_groups(), *([self.step_state] if self.compiled else [])]

    @property
    def examples(self):
        """How many examples the running means hold, a float32 scalar; 0 before `compile`."""
        return next((tracker.count for tracker in self._trackers.values()), tf.constant(0.0))

    @property
    def metrics(self):
        keras_metrics = [metric for metric in super().metrics if metric.name != "loss"]
        return [*self._trackers.values(), *keras_metrics, *self._counters.values()]

    @property
    def _metrics_wait_for_predictions(self):
        return self._compile_metrics is not None and not self._compile_metrics.built

    def _build_metrics(self, y, y_pred):
        """Makes the compiled metrics where predictions are seen for the first time."""
        if self._metrics_wait_for_predictions and y_pred is not None:
            variables.made_outside_of_graph(self._compile_metrics.build, y, y_pred)

    def _check_metrics_are_fed(self):
        """Raises a `ValueError` where there are compiled metrics and no predictions for them."""
        if self._metrics_wait_for_predictions:
            raise ValueError(
                f"The metrics passed to `compile` have nothing to measure. Expected an objective "
                f"of {type(self).__name__} with predictions; received none. Return "
                "`Objective(terms, y_pred)`, or leave the metrics out."
            )

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        self._loss_is_used = True
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def _check_loss_is_used(self):
        """Warns where a loss was compiled and no objective of this step has asked for it."""
        if self._compile_loss is not None and not self._loss_is_used:
            warnings.warn(
                f"No objective of {type(self).__name__} asks for the loss passed to `compile`. "
                "Expected a call of `compiled_loss`; found none. Add "
                "`self.compiled_loss(batch, y_pred, training)` to one, or leave the loss out.",
                stacklevel=2,
            )

    def _check_names_differ(self, tracked):
        """Raises a `ValueError` where a metric of the model has the name of a term."""
        if type(self).metrics is not CompiledModel.metrics:
            return  # the class lists its metrics itself, and so logs them itself
        metrics = super().metrics
        if self._compile_metrics is not None and self._compile_metrics.built:
            metrics = [*metrics, *self._compile_metrics.metrics]
        names = [metric.name for metric in metrics]
        for name in tracked:
            if names.count(name) > (name == "loss"):  # Keras has one of that name itself
                raise ValueError(
                    f"A metric of {type(self).__name__} has the name of a term. Expected names "
                    f"that differ; received '{name}' twice. Rename the metric or the term."
                )

    def _check_rate_is_set_once(self, callbacks):
        """Raises a `ValueError` where a callback's learning rate would be overwritten at once."""
        setters = keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau
        for callback in callbacks:
            if self._schedules and isinstance(callback, setters):
                raise ValueError(
                    "The learning rate is set from two sides. Expected one of `schedule_lr` and a "
                    f"callback; received both, {type(callback).__name__}. Leave out the callback, "
                    "or compile without `schedule_lr`; `schedules.ReduceOnPlateau` is a schedule."
                )

    def _is_made_of_built_layers(self):
        builds_itself = type(self).build is not keras.Model.build
        return not builds_itself and self.layers and all(layer.built for layer in self.layers)

    def _build_optimizers(self):
        known = {update.name: list(update.known) for update in self.updates()}
        if isinstance(self.optimizer, OptimizerGroup):
            self.optimizer.build(known)
        elif not self.optimizer.built:
            self.optimizer.build(*known.values())

    def _scheduled_rates(self):
        rates = {name: self.optimizers[name].learning_rate for name in self._schedules}
        return {
            self._label("learning_rate", name): tf.convert_to_tensor(rate)
            for name, rate in rates.items()
        }

    def _label(self, quantity, update_name):
        """The name under which a quantity of an update is logged."""
        return quantity if len(self.updates()) == 1 else f"{quantity}_{update_name}"

    def _count(self, quantity, update, value):
        self._counters[self._label(quantity, update.name)].update_state(value)

    def make_train_function(self, force=False):
        made = self.train_function
        super().make_train_function(force)
        if self._nonfinite == "stop" and self.train_function is not made:
            self.train_function = self._stop.watching(self.train_function)

    def _make_function(self, step_function):
        if not replicas.several_workers(self._distribute_strategy):
            return super()._make_function(step_function)
        logs = replicas.PackedLogs()
        return logs.unpacked(super()._make_function(logs.packed(step_function)))

    def _get_metrics_result_or_logs(self, logs):
        # Keras asks this at the end of an epoch. Its own answer falls back to the logs of the
        # last step for everything as soon as one of them, such as a rate, is not a metric.
        exact = self.get_metrics_result()
        return {name: exact.get(name, value) for name, value in logs.items()}

    def evaluate(self, *args, **kwargs):
        """`keras.Model.evaluate`.

        Raises:
            ValueError: there are sample weights but no targets, a case that Keras ignores.
        """
        arguments = inspect.signature(super().evaluate).bind(*args, **kwargs).arguments
        replicas.check_scope(self, self._distribute_strategy)
        _check_weights_have_targets(arguments)
        return super().evaluate(*args, **kwargs)

    def predict_on_batch(self, x):
        """`keras.Model.predict_on_batch`; on replicas, which share the batch, it is `predict`."""
        if self.distribute_strategy.num_replicas_in_sync == 1:
            return super().predict_on_batch(x)
        return self.predict(x, batch_size=len(keras.tree.flatten(x)[0]), verbose=0)

    def fit(self, *args, **kwargs):
        """`keras.Model.fit`; when it dies, callbacks with `on_train_interrupted` are told.

        Raises:
            ValueError: there are sample weights but no targets, a case that Keras ignores, or class
                weights without labels or out of their range; a callback sets a learning rate that
                `schedule_lr` sets too; or two callbacks restore the run.
        """
        call = _FIT.bind(self, *args, **kwargs)
        call.apply_defaults()
        arguments, changed = call.arguments, {}
        replicas.check_scope(self, self._distribute_strategy)
        _check_weights_have_targets(arguments)
        given = arguments["callbacks"] or []
        if isinstance(given, keras.callbacks.CallbackList):
            callbacks, options = list(given.callbacks), {"params": given.params}
            heard = callbacks
            if type(given) is not keras.callbacks.CallbackList:  # it has something to say itself
                heard, options = [given], {}
        else:
            callbacks = heard = keras.tree.flatten(given)
            options = dict(add_history=True, add_progbar=arguments["verbose"] != 0)
            options["params"] = {name: arguments[name] for name in ("verbose", "epochs")}
        self._check_rate_is_set_once(callbacks)
        resume = _find_resume(callbacks, heard)
        try:
            with contextlib.ExitStack() as stack:
                if resume is not None:
                    changed["initial_epoch"] = stack.enter_context(
                        resume.running(self, arguments["epochs"], arguments["initial_epoch"])
                    )
                if not replicas.is_chief(self._distribute_strategy):
                    scratch = stack.enter_context(tempfile.TemporaryDirectory())
                    heard = _followers(callbacks, scratch)
                fitting = FitCallbacks(heard, arguments, resume, model=self, **options)
                stack.callback(fitting.close)
                changed["callbacks"] = self._fitting = fitting
                args = [changed.pop(name, value) for name, value in zip(_FIT_NAMES, args)]
                return super().fit(*args, **{**kwargs, **changed})
        except BaseException as error:
            for callback in callbacks:
                try:
                    getattr(callback, "on_train_interrupted", lambda error: None)(error)
                except Exception as failure:
                    error.add_note(f"{type(callback).__name__} failed after it: {failure!r}")
            raise
        finally:
            self._fitting = None


def _find_resume(callbacks, heard):
    """The `Resume` among the callbacks, or None.

    Raises:
        ValueError: there is another that restores the run, or it is not among those `heard`.
    """
    kinds = Resume, keras.callbacks.BackupAndRestore
    found = [callback for callback in callbacks if isinstance(callback, kinds)]
    resume = next((callback for callback in found if isinstance(callback, Resume)), None)
    if resume is not None and len(found) > 1:
        raise ValueError(
            "The run is restored from two sides. Expected one callback for it; received "
            f"{' and '.join(type(callback).__name__ for callback in found)}. Leave out all but one "
            "`Resume`."
        )
    if resume is not None and resume not in heard:
        raise ValueError(
            "Resume cannot follow callbacks that are kept in a list of its own kind. Expected a "
            "list or a `keras.callbacks.CallbackList`; received a subclass of it. Pass the "
            "callbacks as a list."
        )
    return resume


def _followers(callbacks, scratch):
    """The callbacks as a worker runs them that is not the chief, which writes their files.

    It reads with the chief what is restored, and takes part in every saving, because some variables
    can be read by all workers together only, but saves into the folder `scratch`.
    """
    followers = []
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            followers.append(_Restore(callback))
            followers.append(keras.callbacks.BackupAndRestore(scratch, callback.save_freq))
        elif not isinstance(callback, (keras.callbacks.CSVLogger, keras.callbacks.TensorBoard)):
            followers.append(callback)
    return followers


class _Restore(keras.callbacks.Callback):
    """The first half of `keras.callbacks.BackupAndRestore`."""

    def __init__(self, backup):
        super().__init__()
        self.backup = backup

    def on_train_begin(self, logs=None):
        self.backup.set_model(self.model)
        self.backup.on_train_begin(logs)


def _check_weights_have_targets(arguments):
    class_weight = arguments.get("class_weight") or {}
    if class_weight and not _may_have_targets(arguments):
        raise ValueError(
            "The class weights have no classes to weigh. Expected integer labels beside them; "
            "received no targets. Pass `y`, or a data set of (x, y)."
        )
    for label, weight in class_weight.items():
        check_number(f"class_weight[{label}]", weight, "[0, inf)")
    if arguments.get("sample_weight") is not None and arguments.get("y") is None:
        raise ValueError(
            "The sample weights would be ignored. Expected targets beside them, because Keras "
            "drops weights that come without; received y=None. Pass `y`, which a GAN without "
            "classes takes and does not look at, or a data set of (x, y, sample_weight)."
        )


def _may_have_targets(arguments):
    x = arguments.get("x")
    if arguments.get("y") is not None:
        return True
    if isinstance(x, tf.data.Dataset):
        return isinstance(x.element_spec, tuple) and len(x.element_spec) > 1
    # Of a generator, nothing is known.
    return not any(hasattr(one, "shape") for one in keras.tree.flatten(x))


def _step_state(schedules, conditions):
    step = keras.Variable(
        0, dtype="int64", trainable=False, aggregation="only_first_replica", name="step"
    )
    state = {"step": step}
    for kind, bound in (("schedule_lr", schedules), ("when", conditions)):
        for update, schedule in bound.items():
            state.update({f"{kind}/{update}/{k}": v for k, v in schedule.variables.items()})
    return SavedVariables("step_state", state)
