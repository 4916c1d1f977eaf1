"""`fit`, `evaluate`, `predict` and Keras's callbacks work on every template."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf

from customstep import templates
from tests.conformance.sampling import some
from tests.descriptors import DESCRIPTORS, equal, fit, state


def test_every_template_has_a_descriptor():
    described = {type(descriptor.create()).__name__ for descriptor in DESCRIPTORS}
    assert set(templates.__all__) <= described


def test_fit_trains_every_update_and_logs_its_terms(descriptor):
    model = descriptor.make()
    before = {u.name: [np.array(v) for v in u.variables] for u in model.updates()}
    history = fit(model, descriptor)
    for update in model.updates():
        moved = [not np.array_equal(a, b) for a, b in zip(before[update.name], update.variables)]
        assert any(moved), update.name
        # 24 examples, batches of 8, 2 epochs, and the share of them that a condition allows
        share = np.mean(history.get(f"active_{update.name}", 1))
        iterations = int(model.optimizers[update.name].iterations)
        assert 0 < iterations == pytest.approx(6 * update.times * share)
    assert set(model.terms) <= set(history)
    assert all(np.isfinite(history[name]).all() and len(history[name]) == 2 for name in history)


def test_validation_and_evaluate_report_the_same(descriptor):
    model = descriptor.make()
    x, y, *_ = descriptor.batch
    history = fit(model, descriptor, validation_data=(x, y), validation_batch_size=10)
    logs = model.evaluate(**descriptor.data(), batch_size=10, verbose=0, return_dict=True)
    assert {f"val_{name}" for name in logs} <= set(history)
    for name, value in logs.items():
        assert history[f"val_{name}"][-1] == pytest.approx(value, rel=1e-6), name


def test_evaluate_changes_nothing_and_repeats_itself(descriptor):
    model = descriptor.make()
    fit(model, descriptor, epochs=1)
    before = state(model)
    first, second = (
        model.evaluate(**descriptor.data(), verbose=0, return_dict=True) for _ in range(2)
    )
    assert first == second
    assert equal(state(model), before)


def test_predict_returns_one_output_an_example(descriptor):
    model = descriptor.make()
    outputs = model.predict(descriptor.predicts, batch_size=2, verbose=0)
    for output in keras.tree.flatten(outputs):
        assert len(output) == 5
        assert np.isfinite(output).all()


def test_one_trace_serves_a_whole_fit(descriptor):
    model = descriptor.make()
    traces = []
    step = model.train_step
    model.train_step = lambda data: traces.append(1) or step(data)
    fit(model, descriptor, epochs=3)
    assert len(traces) == 1


@some(1)
def test_every_kind_of_input_trains_alike(descriptor, reference):
    x, y, *_ = descriptor.batch
    arrays = (x,) if y is None else (x, y)
    batches = [keras.tree.map_structure(lambda a: a[i : i + 8], arrays) for i in (0, 8, 16)]

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return batches[index]

    def train_on_batches(model):
        for batch in batches * 2:
            model.train_on_batch(*batch)

    quiet = dict(verbose=0, shuffle=False, epochs=2)
    dataset = tf.data.Dataset.from_tensor_slices(arrays).batch(8)
    for train in (
        lambda model: model.fit(dataset, **quiet),
        lambda model: model.fit(Batches(), **quiet),
        lambda model: model.fit((batch for batch in batches * 2), steps_per_epoch=3, **quiet),
        train_on_batches,
    ):
        model = descriptor.make()
        train(model)
        if descriptor.name == "MeanTeacher":  # a graph of any batch size rounds otherwise
            for a, b in zip(state(model), reference[0]):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
        else:
            assert equal(state(model), reference[0])


def test_keras_callbacks_work(descriptor, tmp_path):
    model = descriptor.make()
    term = "loss" if "loss" in [m.name for m in model.metrics] else model.terms[-1]
    callbacks = [
        keras.callbacks.CSVLogger(tmp_path / "history.csv"),
        keras.callbacks.ModelCheckpoint(
            tmp_path / "best.keras", monitor=term, mode="min", save_best_only=True
        ),
        keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True),
        keras.callbacks.EarlyStopping(monitor=term, mode="min", patience=0, min_delta=1e9),
        keras.callbacks.TensorBoard(tmp_path / "logs", write_graph=False),
        keras.callbacks.TerminateOnNaN(),
    ]
    history = fit(model, descriptor, epochs=5, callbacks=callbacks)
    assert len(history[term]) == 2  # no epoch improves by 1e9, so the second is the last
    with open(tmp_path / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row[term]) for row in rows] == pytest.approx(history[term])
    assert (tmp_path / "best.keras").is_file() and (tmp_path / "2.weights.h5").is_file()


def test_rate_callbacks_scale_every_optimizer(descriptor):
    model = descriptor.make(schedule_lr=None)
    rates = {name: float(one.learning_rate.numpy()) for name, one in model.optimizers.items()}
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    fit(model, descriptor, epochs=2, callbacks=[halve])
    for name, one in model.optimizers.items():
        assert float(one.learning_rate.numpy()) == pytest.approx(rates[name] / 4)
