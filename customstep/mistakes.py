"""The usual mistakes in training steps, each a function that looks for one."""

import dataclasses
import re
import textwrap
from typing import Any

import keras
import numpy as np
from keras import layers

from customstep.recording import noisy_layers

__all__ = ["Evidence", "Finding", "find"]

DOMINANT = 0.99  # a share of the objective above which the other terms hardly count
SMALL_UPDATE, LARGE_UPDATE = 1e-5, 1e-1  # two powers of ten to either side of the usual 1e-3


@dataclasses.dataclass(frozen=True)
class Finding:
    """A mistake that was seen.

    Attributes:
        kind: a short name to test for, such as "no_gradient".
        text: what it is, why it matters, what to do.
    """

    kind: str
    text: str

    def __str__(self):
        return self.text


@dataclasses.dataclass
class Evidence:
    """What the checks look at; each yields pairs of kind and text.

    Attributes:
        model: `keras.Model`, as it is after a step's building.
        updates: list of `inspection.UpdateReport`.
        recording: `recording.Recorder` of a step.
        networks: dict of name to list of weights.
        again: `recording.Recorder.numbers` of the same step, run a second time.
        weighted: the same with other sample weights; None where the batch has none.
        is_built: whether the model counted as built after the step.
        logs_part, logs_both: what a step returned on the first third of the batch alone, and when
            that followed the whole batch in one epoch; None where it failed or is one example.
        sizes: number of examples of the batch and of that part.
        part_error, evaluate_error: None, or the exception of the part and of `test_step`.
        shared_noise: names of the random generators outside the model that the step used.
        not_built: names of the optimizers beside `model.optimizer` that were not built before.
        warnings: list of str, what the step itself warned of.
    """

    model: keras.Model
    updates: list
    recording: Any
    networks: dict
    again: dict
    weighted: dict | None = None
    is_built: bool = True
    logs_part: dict | None = None
    logs_both: dict | None = None
    sizes: tuple = (0, 0)
    part_error: Exception | None = None
    evaluate_error: Exception | None = None
    shared_noise: list = dataclasses.field(default_factory=list)
    not_built: list = dataclasses.field(default_factory=list)
    warnings: list = dataclasses.field(default_factory=list)

    @property
    def trained(self):
        """Ids of the variables that some update trains."""
        return {id(v) for descent in self.recording.descents for v in descent.variables}

    @property
    def moved(self):
        """Ids of the weights that moved while the updates ran, not after them."""
        return set().union(*(descent.moved for descent in self.recording.descents))

    @property
    def is_reproducible(self):
        """Whether the step gave the same numbers when it was run again."""
        return _equal(self.recording.numbers, self.again)


def find(evidence):
    """Looks for every mistake; returns a list of `Finding`."""
    return [Finding(*found) for check in CHECKS for found in check(evidence)]


def _not_finite(e):
    for descent in e.recording.descents:
        if not all(np.isfinite(list(descent.terms.values()))):
            yield "not_finite", (
                f"A term of '{descent.name}' is not finite. The step would spoil all weights. Look "
                "for log(0), sqrt at 0 (its gradient is infinite) or a division by 0, or pass "
                '`compile(nonfinite="skip")`.'
            )
        elif not descent.finite and _is_scaled(descent.optimizer):
            yield "not_finite", (
                f"A gradient of '{descent.name}' overflows float16, so its optimizer skips this "
                "step. That is normal while the loss scale adapts; inspect again after some steps."
            )
        elif not descent.finite:
            yield "not_finite", (
                f"A gradient of '{descent.name}' is not finite. The step would spoil all weights. "
                "Look for sqrt, norm or a power at 0 and add a small epsilon inside."
            )
    if not all(np.isfinite(list(e.recording.logs.values()))) and not e.updates[0].terms:
        names = _listed(name for name, value in e.recording.logs.items() if not np.isfinite(value))
        yield "not_finite", f"The step reports {names} not finite. Look for log(0) or 0 / 0."


def _unused_optimizer(e):
    if hasattr(e.model, "descend"):  # its optimizers are those of its updates
        return
    used = {id(descent.optimizer) for descent in e.recording.descents}
    for name, optimizer in e.recording.optimizers.items():
        if id(optimizer) in used:
            continue
        text = f"The {type(optimizer).__name__} '{name}' trains nothing. "
        if optimizer is e.model.optimizer:
            yield "unused_optimizer", (
                f"{text}Callbacks that set the learning rate know only this one, so they do "
                "nothing; `compile()` without an optimizer makes one. Pass one that the step uses."
            )
        else:
            yield "unused_optimizer", f"{text}Apply its gradients in the step, or remove it."


def _loss_scale(e):
    is_float16 = any(layer.compute_dtype == "float16" for layer in e.model._flatten_layers())
    for descent in _one_of_each(e.recording.descents):
        optimizer = descent.optimizer
        if optimizer is None:
            continue
        if is_float16 and not _is_scaled(optimizer) and optimizer.loss_scale_factor is None:
            yield "unscaled_float16", (
                f"The optimizer of '{descent.name}' has no loss scale, so that small gradients of "
                "float16 layers become 0. Keras wraps only `model.optimizer`; wrap this one in a "
                "`LossScaleOptimizer` and take the gradient of `optimizer.scale_loss(loss)`."
            )
        if not descent.is_scaled:
            yield "unscaled_loss", (
                f"The loss of '{descent.name}' is not scaled, yet its LossScaleOptimizer divides "
                "the gradient by the scale, 32,768 at first. Take the gradient of "
                "`optimizer.scale_loss(loss)`."
            )


def _stale_trainable(e):
    if e.model.train_function is None:
        return
    names = []
    for descent in _one_of_each(e.recording.descents):
        now = {id(variable) for variable in descent.variables}
        known = getattr(descent.optimizer, "_trainable_variables", ())
        names += [v.path for v in known if id(v) not in now and not v.trainable]
    if names:
        yield "stale_trainable", (
            f"`trainable` was set to False after `fit`: {_listed(names)}. The compiled step was "
            "traced before and still trains them. Call `compile` again after setting `trainable`."
        )


def _frozen_moves(e):
    names = []
    for layer in e.model._flatten_layers(recursive=True):
        if not layer.trainable:
            names += [v.path for v in layer.weights if id(v) in e.moved]
    if names:
        yield "frozen_moves", (
            f"Frozen variables move: {_listed(dict.fromkeys(names))}. The step hands them to an "
            "optimizer or assigns to them although `trainable` is False. Train only "
            "`trainable_variables`, listed after freezing."
        )


def _statistics_drift(e):
    for name, weights in e.networks.items():
        parameters = [v for v in weights if v.trainable]
        moved = [v for v in weights if not v.trainable and id(v) in e.moved]
        if parameters and moved and not any(id(v) in e.trained for v in parameters):
            yield "statistics_drift", (
                f"No update trains '{name}', but its statistics move: {_paths(moved)}. A network "
                "that is not trained drifts that way. Set its `trainable = False`, which also "
                "stops its batch normalization, or call it with `training=False`."
            )


def _training_not_passed(e):
    idle = []
    for network in _whole_networks(e.model):
        members = _flat(network)
        if not any(id(v) in e.trained for layer in members for v in layer.trainable_variables):
            continue
        for layer in members:
            if isinstance(layer, layers.BatchNormalization):
                states = [layer.moving_mean, layer.moving_variance] if layer.built else []
            elif layer in noisy_layers(e.model):
                rate = getattr(layer, "rate", getattr(layer, "stddev", 1))
                states = [layer.seed_generator.state] if rate else []
            else:
                continue
            if layer.trainable and states and not any(id(v) in e.recording.moved for v in states):
                idle.append(layer.name)
    if idle:
        yield "training_not_passed", (
            f"Layers behave as in prediction: {_listed(idle)}. Their statistics or their noise "
            "stayed as they were, which happens where a network is called without "
            "`training=True`. Pass `training=True` in `train_step`."
        )


def _ignored_sample_weight(e):
    if e.weighted is None or not e.is_reproducible:
        return
    if _equal(e.recording.numbers, e.weighted):
        yield "ignored_sample_weight", (
            "Nobody uses the sample weights: other ones give the same losses and gradients. Pass "
            "`sample_weight` on to the loss, or do not pass it (nor `class_weight`) to `fit`."
        )


def _inexact_log(e):
    if e.logs_both is None or not e.is_reproducible:
        return
    kinds = {}
    n, m = e.sizes
    for name in e.logs_both.keys() & e.logs_part.keys() & e.recording.logs.keys():
        whole, part, both = e.recording.logs[name], e.logs_part[name], e.logs_both[name]
        exact = (n * whole + m * part) / (n + m)
        if np.isclose(both, exact, rtol=1e-5) or np.isclose(whole, part, rtol=1e-4):
            continue
        if both == part:
            kinds.setdefault("the last batch alone", []).append(name)
        elif np.isclose(both, (whole + part) / 2, rtol=1e-5):
            kinds.setdefault("a mean of batches that forgets their sizes", []).append(name)
    for kind, names in kinds.items():
        yield "inexact_log", (
            f"{_listed(sorted(names))}: `fit` shows {kind}, not the mean over the examples, which "
            "is wrong where the last batch is short. Keep a `keras.metrics.Mean`, update it with "
            "`sample_weight=batch_size`, and return its `result()`."
        )


def _short_batch(e):
    if e.part_error is not None:
        yield "short_batch", (
            f"The step fails on a batch of {e.sizes[1]}: {_short(e.part_error)} The last batch of "
            "an epoch may be short. Take the batch size from `tf.shape`, or drop the remainder."
        )


def _evaluate(e):
    if e.evaluate_error is not None:
        yield "evaluate", (
            f"`evaluate` and `validation_data` fail: {_short(e.evaluate_error)} Override "
            "`test_step`, as you did `train_step`."
        )


def _no_gradient(e):
    for update in e.updates:
        if update.without_gradient:
            yield "no_gradient", (
                f"'{update.name}' has variables without gradient: "
                f"{_listed(update.without_gradient)}. Its objective does not depend on them, or "
                "the path is cut by `stop_gradient`, NumPy, an integer cast or a call outside the "
                "tape. Repair the path, or leave them out of the update."
            )


def _no_variables(e):
    for descent in _one_of_each(e.recording.descents):
        if not descent.variables:
            yield "no_variables", (
                f"'{descent.name}' has no variables, so it trains nothing. The network is frozen, "
                "or was not built when its variables were listed. Build it first, or set "
                "`trainable = True` and compile again."
            )
    if not e.recording.descents:
        yield "no_variables", (
            "The step used no optimizer, so it trains nothing. Call "
            "`optimizer.apply_gradients(zip(gradients, variables))` in `train_step`."
        )


def _cannot_be_saved(e):
    if not e.is_built:
        yield "cannot_be_saved", (
            "The model counts as not built even after a step, so `save`, `save_weights` and "
            "ModelCheckpoint raise. Build the networks in the constructor and set "
            "`self.built = True`, or write `build` and `call`."
        )


def _loses_optimizers(e):
    if e.not_built:
        yield "loses_optimizers", (
            f"Not built before the first step: {_listed(e.not_built)}. A model that is loaded to "
            "go on training would begin with an empty optimizer. In `compile`, call "
            "`optimizer.build(variables)` with the variables it trains."
        )


def _terms(e):
    for update in e.updates:
        for name, value in update.terms.items():
            if value == 0:
                yield "zero_term", (
                    f"The term '{name}' of '{update.name}' is exactly 0 and teaches nothing on "
                    "this batch. Look at its weight and at what it is computed from."
                )
            elif name in update.term_gradients and update.term_gradients[name] is None:
                yield "term_without_gradient", (
                    f"The term '{name}' has no gradient: no variable of '{update.name}' can change "
                    "it. It is made of constants, or cut off by `stop_gradient`, argmax, rounding "
                    "or an integer cast. Repair it, or move it to the `logs` of the `Objective`."
                )
        share = max(update.shares.values(), default=0)
        others = [name for name, value in update.terms.items() if value != 0]
        if share > DOMINANT and len(others) > 1:
            name = max(update.shares, key=update.shares.get)
            yield "dominant_term", (
                f"The term '{name}' is {share:.1%} of the objective of '{update.name}'; the others "
                "hardly count. Weigh the terms, so that each can be seen."
            )


def _update_sizes(e):
    for update in e.updates:
        # At the start of a warm-up or the end of a schedule 0 is right.
        if update.learning_rate == 0 and update.name not in getattr(e.model, "_schedules", ()):
            yield "zero_rate", (
                f"The learning rate of '{update.name}' is 0, so it trains nothing. A callback may "
                "have left it there. Set `optimizer.learning_rate`."
            )
        if not update.learning_rate:
            continue
        rate = f"the learning rate ({update.learning_rate:.0e})"
        if small := [network for network in update.networks if _is_small(network)]:
            yield "small_update", (
                f"'{update.name}' hardly changes {_listed(one.name for one in small)}: update / "
                f"weight {min(n.ratio for n in small):.0e}, where 1e-03 is usual. Raise {rate}, "
                "or find out where the gradients vanish."
            )
        if large := [network for network in update.networks if (network.ratio or 0) > LARGE_UPDATE]:
            yield "large_update", (
                f"'{update.name}' changes {_listed(one.name for one in large)} too fast: update / "
                f"weight {max(n.ratio for n in large):.0e}, where 1e-03 is usual. Lower {rate}, "
                "or clip the gradients."
            )


def _noise(e):
    if {"Python", "NumPy"} & set(e.shared_noise):
        yield "python_noise", (
            f"The step draws from the random numbers of {' and '.join(e.shared_noise)}. A compiled "
            "step draws them once, when it is traced, and repeats them ever after. Draw with "
            "`keras.random` and a `SeedGenerator` of the model."
        )
    elif e.shared_noise or e.recording.draws or not e.is_reproducible:
        yield "global_noise", (
            "The step draws from a random generator that no saved model holds, so training cannot "
            "be resumed exactly. Give the model a `keras.random.SeedGenerator` and pass it as "
            "`seed` to `keras.random.*`."
        )


def _own_warnings(e):
    known = ("Gradients do not exist", "The update '")
    for text in e.warnings:
        if not text.startswith(known):
            yield "warned", f"The step itself warned: {text}"


CHECKS = (
    _not_finite,
    _no_variables,
    _no_gradient,
    _frozen_moves,
    _statistics_drift,
    _stale_trainable,
    _training_not_passed,
    _unused_optimizer,
    _loss_scale,
    _terms,
    _update_sizes,
    _ignored_sample_weight,
    _inexact_log,
    _short_batch,
    _noise,
    _evaluate,
    _cannot_be_saved,
    _loses_optimizers,
    _own_warnings,
)


def _is_small(network):
    """Whether its gradient changes it by too little; where it has none, that is said elsewhere."""
    if network.gradient_norm is None or network.ratio is None:
        return False
    return network.ratio < SMALL_UPDATE


def _is_scaled(optimizer):
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer)


def _one_of_each(descents):
    return list({descent.name: descent for descent in descents}.values())


def _equal(logs, others):
    return logs.keys() == others.keys() and all(
        np.isclose(logs[name], others[name], rtol=1e-4, atol=0, equal_nan=True) for name in logs
    )


def _whole_networks(model):
    """The model where it is one network, else the networks it is made of."""
    is_graph = any(isinstance(layer, layers.InputLayer) for layer in model.layers)
    return [model] if is_graph or isinstance(model, keras.Sequential) else model.layers


def _flat(layer):
    return [layer, *layer._flatten_layers(include_self=False)]


def _paths(variables):
    return _listed(variable.path for variable in variables)


def _listed(names):
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more


def _short(error):
    """The error in one line, without what Keras writes around it."""
    lines = re.sub(r"\x1b\[\d*m", "", str(error)).splitlines()
    lines = [line for line in lines if line and not line.startswith("Exception encountered")]
    line = textwrap.shorten(" ".join(lines[:1]) or "no message", 150, placeholder="...")
    return f"{type(error).__name__}: {line.rstrip('.')}."
