"""A batch that is NaN or infinite spoils no template: it is skipped, or training stops there."""

import numpy as np
import pytest

from tests.conformance.sampling import in_turns, some
from tests.descriptors import equal, fit, state

BATCH = 8  # examples in a batch of `fit`, of which there are three


def always(step):
    return step >= 0


def make(descriptor, **arguments):
    """A model whose first update never rests, so that it meets the bad batch."""
    if "when" in descriptor.compiled():
        arguments["when"] = always
    return descriptor.make(**arguments)


def spoiled(descriptor, values):
    """The descriptor with values among its inputs; `values` is a dict of row to value."""
    x = descriptor.batch.x.copy()
    for row, value in values.items():
        x[row].flat[5] = value  # of an image, a pixel that no shift moves out
    return descriptor._replace(batch=descriptor.batch._replace(x=x))


def sees_inputs(model):
    """The first update whose objective looks at the inputs, which that of a generator does not."""
    return next(update for update in model.updates() if update.name != "generator")


def on_devices(model, strategy=None):
    """What a stopped step puts back: all but random states, which `preprocess` moves before.

    Where a generator is updated first, that stays done.
    """
    first = sees_inputs(model) == model.updates()[0]
    variables = (model if first else model.discriminator).variables
    variables = [v for v in variables if "seed_generator_state" not in v.path]
    if first:
        variables += [*model.optimizer.variables, *model.step_state.variables.values()]
    if strategy is None:
        return [np.array(v) for v in variables]
    parts = [strategy.experimental_local_results(v.value) for v in variables]
    return [np.array(part) for replicas in parts for part in replicas]


SKIPPING = {"graph": {}, "eager": {"run_eagerly": True}, "xla": {"jit_compile": True}}
STOPPING = {  # name: the mode, the value and how it is called
    "graph": ({}, np.nan, "NaN"),
    "eager": ({"run_eagerly": True}, np.inf, "infinite"),
    "steps_per_execution": ({"steps_per_execution": 3}, -np.inf, "infinite"),
}


@in_turns("mode", SKIPPING)
def test_bad_batches_are_skipped_and_leave_nothing_spoiled(descriptor, mode):
    """Of three batches one has NaN and one infinity, both in their first example."""
    model = make(descriptor, nonfinite="skip", **mode)
    history = fit(model, spoiled(descriptor, {BATCH: np.nan, 2 * BATCH: np.inf}))
    first = sees_inputs(model)
    suffix = f"_{first.name}" if len(model.updates()) > 1 else ""
    assert history[f"nonfinite{suffix}"] == [2.0, 2.0]
    if "nonfinite_generator" in history:  # which does not look at the images
        assert history["nonfinite_generator"] == [0.0, 0.0]
    assert model.steps == 6
    assert int(model.optimizers[first.name].iterations) == 6 * first.times - 4
    for array in [*on_devices(model), *map(np.array, model.metrics_variables), *history.values()]:
        assert np.isfinite(array).all()


@in_turns("mode", STOPPING)
def test_bad_batch_stops_training_as_it_was_before_that_batch(descriptor, mode):
    mode, value, kind = mode
    model, expected = make(descriptor, nonfinite="stop", **mode), make(descriptor, **mode)
    first = sees_inputs(model).name
    message = f"^The update '{first}' is not finite in step 1: .* {kind} values in its inputs"
    with pytest.raises(FloatingPointError, match=message):
        fit(model, spoiled(descriptor, {BATCH: value}))
    x, y, *_ = descriptor.batch
    head = descriptor._replace(batch=descriptor.batch._replace(x=x[:BATCH], y=rows(y)))
    fit(expected, head, epochs=1)
    assert equal(on_devices(model), on_devices(expected))
    assert model.steps == 1


def rows(y):
    if isinstance(y, dict):
        return {name: array[:BATCH] for name, array in y.items()}
    return None if y is None else y[:BATCH]


@some(1)
def test_bad_example_of_one_replica_stops_both(descriptor, two_replicas):
    with two_replicas.scope():
        model = make(descriptor, nonfinite="stop")
    x, y, *_ = descriptor.batch
    fit(model, descriptor, epochs=1)
    before = on_devices(model, two_replicas)
    second_half = spoiled(descriptor, {BATCH // 2: np.nan})
    with pytest.raises(FloatingPointError, match="in step 3: .* NaN values in its inputs"):
        fit(model, second_half)
    assert equal(on_devices(model, two_replicas), before)


def test_stop_changes_nothing_where_all_is_finite(descriptor, reference):
    model = descriptor.make(nonfinite="stop")
    history = fit(model, descriptor)
    assert equal(state(model), reference[0])
    assert history == {k: v for k, v in reference[1].items() if not k.startswith("nonfinite")}
