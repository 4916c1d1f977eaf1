"""What one training step does: to look at before a long training, or when one goes wrong."""

import contextlib
import dataclasses
import math
import textwrap
import warnings
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from customstep import mistakes
from customstep.mistakes import Evidence, Finding
from customstep.recording import Recorder, networks_of, optimizers_of
from customstep.rewind import Snapshot
from customstep.step import Batch

__all__ = ["Finding", "NetworkReport", "Report", "UpdateReport", "inspect"]

_WIDTH = 80  # columns of a printed report
_ROWS = 12  # networks that a printed table shows


@dataclasses.dataclass(frozen=True)
class NetworkReport:
    """What one update did to one network.

    Attributes:
        name: the attribute of the model that holds it, or the layer's own name.
        moved: whether a weight of it changed, moving statistics included.
        gradient_norm: Euclidean norm over those of its variables that the update trains; None
            where it trains none.
        ratio: ||dw|| / ||w|| over the same variables; None also where they are all zero.
    """

    name: str
    moved: bool
    gradient_norm: float | None = None
    ratio: float | None = None


@dataclasses.dataclass(frozen=True)
class UpdateReport:
    """What one update did in a step; means over its descents where it descends several times.

    Attributes:
        name: of the update, or of the optimizer in a hand-written step.
        optimizer: its class's name.
        descents: how often it descended, 0 where a condition held it back.
        learning_rate: the rate in force; None where it did not descend.
        terms: dict of name to value; empty for a hand-written step, which does not tell.
        shares: dict of term name to its part of the sum, by absolute values, in `[0, 1]`.
        term_gradients: dict of term name to the norm of its own gradient, None where it has none;
            in the last descent where there are several.
        logs: dict of name to value, of what is logged and not minimized.
        gradient_norm, ratio: as in `NetworkReport`, over all variables of the update.
        networks: tuple of `NetworkReport`, one for each network of the model.
        without_gradient: paths of the variables that it trains and that have no gradient.
        seconds: dict of "gradients", which includes the forward pass, and "apply", the optimizer's
            part; for a hand-written step "apply" only.
    """

    name: str
    optimizer: str
    descents: int
    learning_rate: float | None
    terms: Mapping[str, float]
    shares: Mapping[str, float]
    term_gradients: Mapping[str, float | None]
    logs: Mapping[str, float]
    gradient_norm: float | None
    ratio: float | None
    networks: tuple[NetworkReport, ...]
    without_gradient: tuple[str, ...]
    seconds: Mapping[str, float]

    @property
    def moved(self):
        """Names of the networks that moved."""
        return tuple(network.name for network in self.networks if network.moved)

    @property
    def unmoved(self):
        """Names of the networks that did not move."""
        return tuple(network.name for network in self.networks if not network.moved)


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """What one training step did; `print` shows it as a table.

    Attributes:
        model: the name of its class.
        examples: how many the batch has.
        updates: tuple of `UpdateReport`, in the order of the step.
        moved_after: names of the networks that moved after the last descent, such as an average.
        logs: dict of name to float, what the step returned.
        seconds: dict of the step's part to seconds, the updates' parts not among them.
        warnings: tuple of `Finding`, the mistakes that could be seen.
    """

    model: str
    examples: int
    updates: tuple[UpdateReport, ...]
    moved_after: tuple[str, ...]
    logs: Mapping[str, float]
    seconds: Mapping[str, float]
    warnings: tuple[Finding, ...]

    def __repr__(self):
        kinds = ", ".join(finding.kind for finding in self.warnings) or "none"
        updates = ", ".join(update.name for update in self.updates)
        return f"<Report of {self.model}: updates {updates}; warnings: {kinds}>"

    def __str__(self):
        return "\n".join(_lines(self))


def inspect(model, batch, *, verbose=True):
    """Runs one training step, tells what it did, and leaves the model as it was.

    For every update: its terms and their shares, the learning rate, the norm of the gradient, the
    ratio of update to weight, which networks moved, and what has no gradient. Then the time of
    each part, and the mistakes that could be seen. A hand-written `train_step` of a plain
    `keras.Model` is looked at through its optimizers, so that its terms remain unknown.

    A healthy ratio of update to weight is near 1e-3 (Karpathy, cs231n.github.io, "Ratio of
    weights:updates"). The step runs eagerly, seven times or so: its times are those of eager
    execution, good for comparing parts, and longer than those of the compiled step.

    Weights, optimizers, metrics, random states and attributes are the same afterwards, bit for
    bit, also where the step raises. NumPy arrays that a step changes in place are not put back.

    Args:
        model: a compiled `StepModel`, or any compiled `keras.Model`. It need not have been built,
            nor be one that can be saved.
        batch: one batch as a data set yields it: `x`, `(x, y)` or `(x, y, sample_weight)`, of
            arrays or tensors; or a `tf.data.Dataset`, whose first batch is taken.
        verbose: prints the report; False only returns it.

    Returns:
        `Report`.

    Raises:
        ValueError: the model is not compiled, is trained on several replicas, or is not built and
            has a step that cannot be compiled.

    Example:

        report = inspect(gan, images[:32])
        report.updates[0].gradient_norm
        [finding.kind for finding in report.warnings]
    """
    _check(model)
    batch = _as_batch(batch)
    with _unstopped(model):
        before = Snapshot(model)
        try:
            with _eager(), warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                evidence = _collect(model, batch, before)
            evidence.warnings = list(dict.fromkeys(str(w.message) for w in caught if _is_told(w)))
            findings = tuple(mistakes.find(evidence))
        finally:
            before.restore()
    recording = evidence.recording
    report = Report(
        model=type(model).__name__,
        examples=batch.size,
        updates=tuple(evidence.updates),
        moved_after=_names(evidence.networks, recording.moved_after),
        logs=recording.logs,
        seconds=recording.seconds,
        warnings=findings,
    )
    if verbose:
        print(report)
    return report


@contextlib.contextmanager
def _unstopped(model):
    """Within it, what is not finite ends no step, for it is to be reported."""
    stops = getattr(model, "_nonfinite", None) == "stop"
    if stops:
        model._nonfinite = None
    try:
        yield
    finally:
        if stops:
            model._nonfinite = "stop"


def _check(model):
    if not isinstance(model, keras.Model) or not model.compiled:
        received = "one that is not compiled" if isinstance(model, keras.Model) else repr(model)
        raise ValueError(
            f"There is no step to inspect. Expected a compiled keras.Model; received {received}. "
            "Call `model.compile(...)` first, as for `fit`."
        )
    if model.distribute_strategy.num_replicas_in_sync > 1:
        raise ValueError(
            "A step on several replicas cannot be inspected. Expected a model on one device; "
            f"received one on {model.distribute_strategy.num_replicas_in_sync} replicas. Make the "
            "model outside of `strategy.scope()` to inspect it."
        )


def _is_told(warning):
    """Whether it is for users of the step, as are those that Python shows by default."""
    return issubclass(warning.category, (UserWarning, RuntimeWarning))


def _as_batch(batch):
    if isinstance(batch, tf.data.Dataset):
        batch = next(iter(batch))
    data = batch[:3] if isinstance(batch, Batch) else batch
    batch = Batch(*keras.utils.unpack_x_y_sample_weight(data))

    def as_tensor(array):
        if array is None:
            return None
        is_float = not tf.is_tensor(array) and np.asarray(array).dtype.kind == "f"
        return tf.convert_to_tensor(array, keras.config.floatx() if is_float else None)

    return keras.tree.map_structure(as_tensor, batch, none_is_leaf=True)


def _as_data(batch):
    """The batch as `train_step` takes it."""
    return keras.utils.pack_x_y_sample_weight(*batch[:3])


@contextlib.contextmanager
def _eager():
    """Functions that are compiled on their own run eagerly too, for all to be seen."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def _collect(model, batch, before):
    """Runs the step in several ways, each time from the same state."""
    optimizers = optimizers_of(model, before.objects)
    not_built = [
        name
        for name, optimizer in optimizers.items()
        if optimizer is not model.optimizer and not optimizer.built
    ]

    def run(batch, start):
        start.restore()
        model.reset_metrics()
        return Recorder(model, optimizers).run(_as_data(batch))

    weights = len(model.weights)
    start, first = before, run(batch, before)
    if len(model.weights) > weights:  # some were made in the step, which hid their first change
        start = _with_all_weights(model, batch, before)
        first = run(batch, start)
    recording = run(batch, start)  # this one, because first calls take longer
    networks = networks_of(model)
    evidence = Evidence(
        model=model,
        updates=_update_reports(recording, networks),
        recording=recording,
        networks=networks,
        again=first.numbers,
        is_built=model.built,
        shared_noise=start.shared_noise(),
        not_built=not_built,
    )
    if batch.size >= 3:
        part = batch.part(0, 3)
        evidence.sizes = batch.size, part.size
        metrics = [one for one in start.objects if isinstance(one, keras.metrics.Metric)]
        start.restore_values(but=[v for metric in metrics for v in metric.variables])
        after_batch = Snapshot(model)  # the metrics hold the batch, all else is as before it
        try:
            evidence.logs_both = Recorder(model, optimizers).run(_as_data(part)).logs
            evidence.logs_part = run(part, after_batch).logs
        except Exception as error:
            evidence.part_error = error
    if batch.sample_weight is not None:
        other = keras.tree.map_structure(_other_weights, batch.sample_weight)
        evidence.weighted = run(batch._replace(sample_weight=other), start).numbers
    start.restore()
    try:
        Recorder(model, optimizers).run(_as_data(batch), step=model.test_step)
    except Exception as error:
        evidence.evaluate_error = error
    return evidence


def _with_all_weights(model, batch, before):
    """A snapshot with all weights made, none of them moved: tracing a step does just that."""
    before.restore()
    tf.config.run_functions_eagerly(False)
    try:
        tf.function(model.train_step).get_concrete_function(_as_data(batch))
    except Exception as error:
        raise ValueError(
            f"The weights of {type(model).__name__} cannot be made before its step. Expected a "
            f"model that is built, or a step that can be compiled; received {error!r}. Call the "
            "model on a batch first."
        ) from error
    tf.config.run_functions_eagerly(True)
    return Snapshot(model)


def _other_weights(weights):
    """Sample weights `(n, ...)` of another sum and other proportions."""
    factors = tf.linspace(0.5, 2.0, weights.shape[0])
    shape = [-1] + [1] * (len(weights.shape) - 1)
    return weights * tf.cast(tf.reshape(factors, shape), weights.dtype)


def _update_reports(recording, networks):
    groups = {}
    for descent in recording.descents:
        same = (descent.name, *map(id, descent.variables))
        groups.setdefault(same, []).append(descent)
    names = [descents[0].name for descents in groups.values()]
    reports = []
    for place, descents in enumerate(groups.values()):
        name = names[place]
        if names.count(name) > 1:  # one optimizer, used for several sets of variables
            name = f"{name} ({names[: place + 1].count(name)})"
        reports.append(_update_report(name, descents, networks, recording.optimizers))
    return reports


def _update_report(name, descents, networks, optimizers):
    active = [descent for descent in descents if descent.optimizer is not None]
    variables = descents[0].variables
    terms = _mean_of_each([descent.terms for descent in descents])
    total = sum(map(abs, terms.values()))
    found = [descent.gradients for descent in descents if descent.gradients is not None]
    missing = [v.path for v in variables if found and not any(id(v) in one for one in found)]
    optimizer = active[0].optimizer if active else optimizers.get(name)
    moved = set().union(*(descent.moved for descent in descents))
    norm = _norm(active, variables)
    return UpdateReport(
        name=name,
        optimizer=type(getattr(optimizer, "inner_optimizer", optimizer)).__name__,
        descents=len(active),
        learning_rate=active[-1].rate if active else None,
        terms=terms,
        shares={name: abs(value) / total if total else 0.0 for name, value in terms.items()},
        term_gradients=_term_gradients(active, terms, norm),
        logs=_mean_of_each([descent.logs for descent in descents]),
        gradient_norm=norm,
        ratio=_ratio(active, variables),
        networks=tuple(
            NetworkReport(
                network,
                moved=any(id(weight) in moved for weight in weights),
                gradient_norm=_norm(active, inside),
                ratio=_ratio(active, inside),
            )
            for network, weights in networks.items()
            for inside in [_intersection(variables, weights)]
        ),
        without_gradient=tuple(missing),
        seconds={
            part: sum(descent.seconds[part] for descent in descents)
            for part in dict.fromkeys(part for descent in descents for part in descent.seconds)
        },
    )


def _mean_of_each(dicts):
    return {name: float(np.mean([one[name] for one in dicts])) for name in dicts[0]}


def _term_gradients(descents, terms, norm):
    """Of the last descent; a single term has the gradient of the update."""
    if len(terms) == 1:
        return dict.fromkeys(terms, norm)
    return descents[-1].term_gradients if descents else {}


def _intersection(variables, weights):
    inside = {id(weight) for weight in weights}
    return [variable for variable in variables if id(variable) in inside]


def _norm(descents, variables):
    """The mean over descents of the gradient's norm; None where there is none."""
    squares = [
        [d.gradients[id(v)] for v in variables if id(v) in d.gradients]
        for d in descents
        if d.gradients
    ]
    norms = [math.sqrt(sum(of_one)) for of_one in squares if of_one]
    return float(np.mean(norms)) if norms else None


def _ratio(descents, variables):
    """The mean over descents of ||dw|| / ||w||; None where all weights are 0."""
    ratios = []
    for descent in descents:
        weight = sum(descent.weights.get(id(v), 0.0) for v in variables)
        change = sum(descent.changes.get(id(v), 0.0) for v in variables)
        if weight > 0:
            ratios.append(math.sqrt(change / weight))
    return float(np.mean(ratios)) if ratios else None


def _names(networks, moved):
    return tuple(name for name, weights in networks.items() if any(id(w) in moved for w in weights))


# -- Printing -------------------------------------------------------------------------------


def _lines(report):
    yield f"One step of {report.model} on a batch of {report.examples}"
    for update in report.updates:
        yield from _update_lines(update)
    yield ""
    if report.moved_after:
        yield from _wrapped("after the updates moved: ", ", ".join(report.moved_after))
    yield from _seconds_lines(report)
    if not any(update.terms for update in report.updates) and report.logs:
        logs = (f"{name} {value:.4g}" for name, value in report.logs.items())
        yield from _wrapped("the step returned: ", ", ".join(logs))
    yield ""
    if not report.warnings:
        yield "No mistake was seen."
    for number, finding in enumerate(report.warnings, start=1):
        yield from _wrapped(f"{number:>2}. ", f"[{finding.kind}] {finding}")


def _update_lines(update):
    yield ""
    if update.descents:
        times = "" if update.descents == 1 else f", {update.descents} descents"
        rate = f"learning rate {update.learning_rate:.3g}"
        yield _cut(f"{update.name}: {update.optimizer}, {rate}{times}")
    else:
        yield _cut(f"{update.name}: did not descend in this step")
    if update.terms:
        yield f"  {'term':<36}{'share':>8}{'gradient norm':>16}{'value':>18}"
        for name, value in update.terms.items():
            norm = _number(update.term_gradients.get(name), ".3g")
            yield f"  {_cut(name, 35):<36}{update.shares[name]:>8.1%}{norm:>16}{value:>18.4g}"
    for name, value in update.logs.items():
        yield f"  {_cut(name, 35):<36}{'':>8}{'(logged only)':>16}{value:>18.4g}"
    yield f"  {'network':<36}{'moved':>8}{'gradient norm':>16}{'update / weight':>18}"
    shown = update.networks
    if len(shown) > _ROWS:
        shown = shown[: _ROWS // 2] + shown[-_ROWS // 2 :]
    for place, network in enumerate(shown):
        if place == _ROWS // 2 and len(update.networks) > _ROWS:
            yield f"  ... {len(update.networks) - _ROWS} more, see `networks` of the report ..."
        yield _row(network.name, "yes" if network.moved else "no", network)
    if len(update.networks) > 1:
        yield _row("all that it trains", "", update)
    if update.without_gradient:
        yield from _wrapped("  no gradient: ", ", ".join(update.without_gradient))


def _row(name, moved, numbers):
    norm, ratio = _number(numbers.gradient_norm, ".3g"), _number(numbers.ratio, ".1e")
    return f"  {_cut(name, 35):<36}{moved:>8}{norm:>16}{ratio:>18}"


def _number(value, form):
    return "-" if value is None else format(value, form)


def _seconds_lines(report):
    parts = {
        f"{update.name}: {part}": seconds
        for update in report.updates
        for part, seconds in update.seconds.items()
    }
    first = {name: report.seconds[name] for name in ("preprocess",) if name in report.seconds}
    parts = {**first, **parts, **report.seconds}
    total = sum(parts.values())
    yield f"time, eager: {1000 * total:.1f} ms"
    for name, seconds in parts.items():
        yield f"  {_cut(name, 43):<44}{1000 * seconds:>13.1f} ms{seconds / total:>16.0%}"


def _wrapped(head, text):
    return textwrap.wrap(
        text, _WIDTH, initial_indent=head, subsequent_indent=" " * min(len(head), 4)
    )


def _cut(text, width=_WIDTH):
    return text if len(text) <= width else text[: width - 3] + "..."
