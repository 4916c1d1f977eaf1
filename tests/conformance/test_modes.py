"""Every template gives the same numbers however its step is run, and trains in every precision."""

import keras
import numpy as np
import pytest

from tests.conformance.sampling import in_turns, some
from tests.descriptors import equal, fit, state


def test_eager_steps_match_the_graph(descriptor, reference):
    eager = descriptor.make(run_eagerly=True)
    fit(eager, descriptor)
    for a, b in zip(reference[0], state(eager)):
        # The graph fuses operations, which rounds differently.
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@in_turns("steps", [2, 4])
def test_steps_per_execution_change_no_bit(descriptor, reference, steps):
    model = descriptor.make(steps_per_execution=steps)
    history = fit(model, descriptor)
    assert equal(state(model), reference[0])
    assert history == reference[1]


@some(2)
def test_xla_trains(descriptor):
    model = descriptor.make(jit_compile=True)
    before = state(model)
    history = fit(model, descriptor)
    assert all(np.isfinite(values).all() for values in history.values())
    assert not equal(before, state(model))


@in_turns("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_trains_float32_weights(descriptor, policy):
    keras.mixed_precision.set_global_policy(policy)
    model = descriptor.make()
    history = fit(model, descriptor)
    assert all(np.isfinite(values).all() for values in history.values())
    assert {weight.dtype for weight in model.trainable_weights} == {"float32"}
    scaled = policy == "mixed_float16"
    for optimizer in model.optimizers.values():
        assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer) == scaled


def test_overflow_in_one_update_skips_that_one_only(descriptor):
    keras.mixed_precision.set_global_policy("mixed_float16")
    model = descriptor.make()
    updates = model.updates()
    scales = [model.optimizers[update.name] for update in updates]
    scales[0].dynamic_scale.assign(1e38)
    before = [[np.array(v) for v in update.variables] for update in updates]
    fit(model, descriptor, epochs=1, batch_size=24)  # one step
    assert equal(before[0], [np.array(v) for v in updates[0].variables])
    assert int(scales[0].iterations) == 0
    for update, old, optimizer in list(zip(updates, before, scales))[1:]:
        assert not equal(old, [np.array(v) for v in update.variables])
        assert int(optimizer.iterations) == update.times


def test_short_last_batch_counts_by_its_size(descriptor):
    """The mean over batches of 16 and 8 is the mean over all 24, for what can be added up."""
    model = descriptor.make()
    whole = model.evaluate(**descriptor.data(), batch_size=24, verbose=0, return_dict=True)
    parts = model.evaluate(**descriptor.data(), batch_size=16, verbose=0, return_dict=True)
    for name in set(whole) - set(() if descriptor.alone else ("loss", *model.terms)):
        assert parts[name] == pytest.approx(whole[name], rel=1e-5), name
