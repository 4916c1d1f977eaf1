"""Keras's callbacks that reach into optimizers do so on every template."""

import keras
import numpy as np
import pytest

from customstep.schedules import LinearDecay
from tests.conformance.sampling import some
from tests.descriptors import fit, gan


def rates(model):
    return {k: float(np.array(one.learning_rate)) for k, one in model.optimizers.items()}


def watched(model):
    return "loss" if len(model.updates()) == 1 else model.terms[-1]


def test_plateau_lowers_the_rate_of_every_optimizer(descriptor):
    model = descriptor.make(schedule_lr=None)
    before = rates(model)
    # No epoch is better than the first by 1e9, so the second and the third are plateaus.
    halve = keras.callbacks.ReduceLROnPlateau(
        watched(model), factor=0.5, patience=1, min_delta=1e9, mode="min"
    )
    history = fit(model, descriptor, epochs=3, callbacks=[halve])
    assert rates(model) == pytest.approx({name: rate / 4 for name, rate in before.items()})
    for name, rate in before.items():
        group = hasattr(model.optimizer, "optimizers")
        label = f"learning_rate_{name}" if group else "learning_rate"
        assert history[label] == pytest.approx([rate, rate, rate / 2])


def test_plateau_beside_a_schedule_is_refused(descriptor):
    model = descriptor.make(schedule_lr=LinearDecay(0.01, steps=10))
    lower = keras.callbacks.ReduceLROnPlateau(watched(model), mode="min")
    with pytest.raises(ValueError, match="set from two sides"):
        fit(model, descriptor, callbacks=[lower])


def averaging(optimizer):
    config = {**optimizer.get_config(), "use_ema": True, "ema_momentum": 0.5}
    return type(optimizer).from_config(config)


@some(2)
def test_validation_sees_the_averages_that_swap_ema_weights_puts_in_place(descriptor):
    """At its end `fit` leaves the averages in the model, so `evaluate` then says what to expect."""
    x, y, *_ = descriptor.batch
    results = []
    for callbacks in ([keras.callbacks.SwapEMAWeights()], []):
        optimizer = descriptor.compiled()["optimizer"]
        if isinstance(optimizer, dict):
            optimizer = {name: averaging(one) for name, one in optimizer.items()}
        else:
            optimizer = averaging(optimizer)
        model = descriptor.make(optimizer=optimizer)
        history = fit(model, descriptor, validation_data=(x, y), callbacks=callbacks)
        logs = model.evaluate(**descriptor.data(), batch_size=8, verbose=0, return_dict=True)
        terms = {"loss", *model.terms} & set(logs)
        results.append({
            name: history[f"val_{name}"][-1] == pytest.approx(logs[name], rel=1e-4, abs=1e-5)
            for name in terms
        })
    swapped, plain = results
    assert all(swapped.values())
    if descriptor.name != "MeanTeacher":  # whose teacher is an average already
        assert not all(plain.values())


def test_swap_ema_weights_takes_the_optimizers_that_average():
    images = np.zeros((8, 4, 4, 1), "float32")
    quiet = dict(batch_size=8, verbose=0)
    model = gan()
    model.compile({"discriminator": "adam", "generator": averaging(keras.optimizers.Adam())})
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    history = model.fit(images, epochs=2, callbacks=[swap], **quiet).history
    assert np.isfinite(history["generator_loss"]).all()


def test_swap_ema_weights_without_averages_says_so():
    images = np.zeros((8, 4, 4, 1), "float32")
    model = gan()
    model.compile({"discriminator": "adam", "generator": "adam"})
    with pytest.raises(ValueError, match="at least one inner optimizer has `use_ema=True`"):
        model.fit(
            images,
            validation_data=(images,),
            batch_size=8,
            verbose=0,
            callbacks=[keras.callbacks.SwapEMAWeights()],
        )
