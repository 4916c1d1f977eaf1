"""`Resume` with every kind of data and beside other callbacks, what it writes and refuses."""

import collections
import json
import re
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from customstep import GAN, PartiallyFrozen, Resume, SampleGrid, StepModel, Unfreeze, streams
from customstep import checkpoints, fitting
from customstep.schedules import LinearDecay
from tests.descriptors import (
    CLASSES,
    FEATURES,
    discriminator,
    equal,
    functional_classifier,
    gan,
    gan_compiled,
    generator,
    state,
)
from tests.interruptions import Killed, interrupted, kill_after

pytestmark = pytest.mark.filterwarnings(  # files that a killed run leaves open
    "ignore::pytest.PytestUnraisableExceptionWarning"
)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
QUIET = dict(verbose=0)
IN_ORDER = dict(verbose=0, shuffle=False)


def classifier(seed=0, **arguments):
    keras.utils.set_random_seed(seed)
    model = functional_classifier()
    defaults = dict(optimizer=keras.optimizers.Adam(), loss=LOSS, metrics=["accuracy"])
    model.compile(**{**defaults, **arguments})
    return model


def compare(make, train, directory, **arguments):
    """Asserts that a run in pieces equals a run in one; returns the last model of the pieces."""
    whole = make(0)
    expected = train(whole, []).history
    model, history = interrupted(make, train, directory, **arguments)
    assert equal(state(model), state(whole))
    assert history.history == expected
    return model


def arrays(model, callbacks):
    return model.fit(FEATURES, CLASSES, 8, epochs=3, callbacks=callbacks, **QUIET)


# The data go on in their place


def same_seed(seed):
    """As the same command makes it, with the same seeds: the data depend on them."""
    return classifier(0)


def test_arrays_that_keras_shuffles_go_on(tmp_path):
    compare(same_seed, arrays, tmp_path / "a")


def test_batches_that_are_a_stream_go_on_whatever_was_drawn_before(tmp_path):
    def train(model, callbacks):
        data = streams.index_batches(24, 5, seed=3)
        data = data.map(lambda i: (tf.gather(FEATURES, i), tf.gather(CLASSES, i))).take(3)
        for _ in range(len(callbacks)):
            next(iter(data))  # a look at them is not to change their order
        return model.fit(data.prefetch(2), epochs=3, callbacks=callbacks, **IN_ORDER)

    compare(classifier, train, tmp_path / "a")


def read_batches(monkeypatch):
    """A list that grows by one for every batch that is read and dropped."""
    read = []
    original = fitting._pass

    def counting(iterator, number):
        read.append(number)
        return original(iterator, number)

    monkeypatch.setattr(fitting, "_pass", counting)
    return read


def killed_at_the_end(directory, data, epochs=5, **arguments):
    """Trains until one step before the end, and then the rest with another model."""
    options = dict(epochs=epochs, verbose=0, shuffle=False, **arguments)
    with pytest.raises(Killed):
        callbacks = [Resume(directory, every=1), kill_after(3 * epochs - 1)]
        classifier().fit(data(), callbacks=callbacks, **options)
    classifier().fit(data(), callbacks=[Resume(directory, every=1)], **options)


def pairs(indices):
    return tf.gather(FEATURES, indices), tf.gather(CLASSES, indices)


def test_earlier_epochs_of_a_stream_are_not_read_again(tmp_path, monkeypatch):
    read = read_batches(monkeypatch)
    killed_at_the_end(tmp_path, lambda: streams.index_batches(24, 8).map(pairs))
    assert not read  # of 13 batches, 12 are of epochs before, and one is used for a step


def test_earlier_epochs_of_a_stream_with_noise_in_it_are_read_again(tmp_path, monkeypatch):
    read = read_batches(monkeypatch)
    noise = layers.GaussianNoise(0.1, seed=1)

    def data():
        data = streams.index_batches(24, 8).map(pairs)
        return data.map(lambda x, y: (noise(x, training=True), y))

    killed_at_the_end(tmp_path, data)
    assert sum(read) == 12


def test_noise_that_a_layer_draws_in_the_pipeline_goes_on(tmp_path):
    def train(model, callbacks):
        noise = layers.GaussianNoise(0.1, seed=1)
        data = streams.index_batches(24, 8).map(pairs)
        data = data.map(lambda x, y: (noise(x, training=True), y))
        return model.fit(data, epochs=3, callbacks=callbacks, **IN_ORDER)

    compare(classifier, train, tmp_path / "a")


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_epochs_of_unknown_length_go_on(tmp_path):
    """Keras takes the length of the first epoch for that of all."""

    def train(model, callbacks):
        data = streams.index_batches(24, 4).filter(lambda i: tf.reduce_sum(i) % 3 > 0).map(pairs)
        return model.fit(data, epochs=4, callbacks=callbacks, **IN_ORDER)

    compare(classifier, train, tmp_path / "a", steps=6)


def test_shuffled_data_set_goes_on(tmp_path):
    def train(model, callbacks):
        data = tf.data.Dataset.from_tensor_slices((FEATURES, CLASSES)).shuffle(24, seed=1).batch(7)
        return model.fit(data, epochs=3, callbacks=callbacks, **IN_ORDER)

    compare(same_seed, train, tmp_path / "a")


def test_cached_stream_goes_on(tmp_path):
    def train(model, callbacks):
        data = streams.index_batches(24, 8)
        data = data.map(lambda i: (tf.gather(FEATURES, i), tf.gather(CLASSES, i))).cache()
        return model.fit(data, epochs=3, callbacks=callbacks, **IN_ORDER)

    compare(classifier, train, tmp_path / "a")


def test_steps_per_epoch_over_a_repeated_stream_go_on(tmp_path):
    def train(model, callbacks):
        data = streams.index_batches(24, 8)
        data = data.map(lambda i: (tf.gather(FEATURES, i), tf.gather(CLASSES, i))).repeat()
        return model.fit(data, epochs=3, steps_per_epoch=4, callbacks=callbacks, **IN_ORDER)

    compare(classifier, train, tmp_path / "a")


def test_generator_goes_on(tmp_path):
    def batches():
        rng = np.random.default_rng(0)
        while True:
            chosen = rng.integers(0, 24, 8)
            yield FEATURES[chosen], CLASSES[chosen]

    def train(model, callbacks):
        return model.fit(batches(), epochs=3, steps_per_epoch=3, callbacks=callbacks, **IN_ORDER)

    compare(classifier, train, tmp_path / "a")


class Shuffled(keras.utils.PyDataset):
    """Batches in an order of numpy's global generator, drawn after every epoch."""

    def __init__(self):
        super().__init__()
        self.order = np.arange(24)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        chosen = self.order[8 * index : 8 * index + 8]
        return FEATURES[chosen], CLASSES[chosen]

    def on_epoch_end(self):
        self.order = np.random.permutation(24)


def test_data_set_of_python_goes_on(tmp_path):
    def train(model, callbacks):
        return model.fit(Shuffled(), epochs=3, callbacks=callbacks, **QUIET)

    compare(same_seed, train, tmp_path / "a")


def test_generator_of_numpys_global_numbers_goes_on(tmp_path):
    """Keras reads ahead, so that the state at a checkpoint is not that of the batch."""
    drawing = threading.Lock()  # Keras's thread outlives `fit`, as it would not a killed process

    def train(model, callbacks):
        ended = []

        def batches():
            while True:
                with drawing:
                    if ended:
                        return
                    chosen = np.random.randint(0, 24, 8)
                yield FEATURES[chosen], CLASSES[chosen]

        try:
            return model.fit(
                batches(), epochs=3, steps_per_epoch=3, callbacks=callbacks, **IN_ORDER
            )
        finally:
            with drawing:
                ended.append(True)

    compare(same_seed, train, tmp_path / "a", every="epoch", steps=4)


@pytest.mark.parametrize("stream", [True, False])
def test_shuffled_validation_data_go_on(stream, tmp_path):
    def train(model, callbacks):
        if stream:
            test = streams.index_batches(24, 8).map(pairs)
        else:
            test = tf.data.Dataset.from_tensor_slices((FEATURES, CLASSES)).shuffle(24, 1).batch(8)
        return model.fit(
            FEATURES, CLASSES, 8, epochs=4, validation_data=test.take(1), validation_freq=[1, 2, 4],
            callbacks=callbacks, **IN_ORDER,
        )  # fmt: skip

    compare(same_seed, train, tmp_path / "a")


def test_sample_weights_validation_and_short_batches_go_on(tmp_path):
    def train(model, callbacks):
        weights = np.linspace(0, 2, 24)
        return model.fit(
            FEATURES,
            CLASSES,
            5,
            epochs=3,
            sample_weight=weights,
            validation_split=0.25,
            callbacks=callbacks,
            **QUIET,
        )

    compare(same_seed, train, tmp_path / "a")


def test_last_batch_of_several_steps_goes_on(tmp_path):
    """Four batches in executions of three: the second one is short."""

    def train(model, callbacks):
        return model.fit(FEATURES, CLASSES, 6, epochs=3, callbacks=callbacks, **QUIET)

    compare(lambda seed: classifier(0, steps_per_execution=3), train, tmp_path / "a", steps=2)


# The model goes on


def test_averages_that_an_optimizer_keeps_go_on(tmp_path):
    def make(seed):
        keras.utils.set_random_seed(0)
        return classifier(optimizer=keras.optimizers.Adam(use_ema=True, ema_momentum=0.9))

    compare(make, arrays, tmp_path / "a")


class Lazy(StepModel):
    """A model that has no variables before its first call."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.body = layers.Dense(4)
        self.drop = layers.Dropout(0.5, seed=1)
        self.head = layers.Dense(3)

    def call(self, x, training=False):
        return self.head(self.drop(self.body(x), training=training))


@pytest.mark.parametrize("every", [1, "epoch"])
def test_model_without_variables_goes_on(every, tmp_path):
    def make(seed):
        keras.utils.set_random_seed(0)
        model = Lazy()
        model.compile("adam", LOSS, ["accuracy"])
        return model

    compare(make, arrays, tmp_path / "a", every=every)


def test_eager_steps_go_on(tmp_path):
    compare(lambda seed: classifier(0, run_eagerly=True), arrays, tmp_path / "a")


@pytest.mark.parametrize("every", ["epoch", 2, 100, None])
def test_result_does_not_depend_on_when_checkpoints_are_written(every, tmp_path):
    compare(same_seed, arrays, tmp_path / "a", every=every, steps=10)


# Other callbacks go on


def test_early_stopping_goes_on_and_stays_stopped(tmp_path):
    def train(model, callbacks):
        stop = keras.callbacks.EarlyStopping(
            "loss", patience=2, min_delta=1e9, restore_best_weights=True
        )
        callbacks = [stop, *callbacks]
        return model.fit(FEATURES, CLASSES, 8, epochs=9, callbacks=callbacks, **QUIET)

    model = compare(same_seed, train, tmp_path / "a")
    again = same_seed(0)
    assert len(train(again, [Resume(tmp_path / "a")]).history["loss"]) == 3
    assert equal(state(again), state(model))


def test_reduced_rate_goes_on(tmp_path):
    def train(model, callbacks):
        reduce = keras.callbacks.ReduceLROnPlateau("loss", patience=1, min_delta=1e9, factor=0.5)
        callbacks = [reduce, *callbacks]
        return model.fit(FEATURES, CLASSES, 8, epochs=5, callbacks=callbacks, **QUIET)

    compare(same_seed, train, tmp_path / "a", steps=4)


def test_scheduled_rate_is_set_once_an_epoch(tmp_path):
    def train(model, callbacks):
        halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
        return model.fit(
            FEATURES, CLASSES, 8, epochs=3, callbacks=[halve, *callbacks], **QUIET
        )

    compare(same_seed, train, tmp_path / "a")


def test_csv_file_goes_on(tmp_path):
    def train(model, callbacks):
        folder = "b" if callbacks else "a"
        log = keras.callbacks.CSVLogger(tmp_path / f"{folder}.csv")
        return arrays(model, [log, *callbacks])

    compare(same_seed, train, tmp_path / "run", every=2, steps=4)
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()


def test_best_model_is_kept(tmp_path):
    def train(model, callbacks):
        path = tmp_path / ("b" if callbacks else "a") / "{epoch}.weights.h5"
        save = keras.callbacks.ModelCheckpoint(
            path, "loss", save_best_only=True, save_weights_only=True, mode="max"
        )
        return arrays(model, [save, *callbacks])

    compare(same_seed, train, tmp_path / "run", steps=4)
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in "ab"]
    assert files[0] == files[1]


def test_averages_that_are_swapped_go_on(tmp_path):
    def make(seed):
        return classifier(optimizer=keras.optimizers.Adam(use_ema=True, ema_momentum=0.9))

    def train(model, callbacks):
        swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
        return arrays(model, [swap, *callbacks])

    compare(make, train, tmp_path / "a")


@pytest.mark.parametrize("every", [1, "epoch"])
def test_gradual_unfreezing_goes_on(every, tmp_path):
    def make(seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((6,))
        x = layers.Dense(4, name="low")(inputs)
        outputs = layers.Dense(3, name="head")(layers.Dense(4, name="middle")(x))
        model = PartiallyFrozen(inputs=inputs, outputs=outputs, freeze=["low/*", "middle/*"])
        model.compile("adam", LOSS)
        return model

    def train(model, callbacks):
        unfreeze = Unfreeze({1: "middle/*", 2: "low/*"})
        return model.fit(
            FEATURES, CLASSES, 8, epochs=4, shuffle=False, callbacks=[unfreeze, *callbacks], **QUIET
        )

    compare(make, train, tmp_path / "a", every=every)


def test_sample_sheets_and_their_animation_are_the_same_files(tmp_path):
    def make(seed):
        keras.utils.set_random_seed(seed)
        model = gan()
        model.name = "gan"
        model.compile(**gan_compiled())
        return model

    def train(model, callbacks):
        grid = SampleGrid(tmp_path / ("b" if callbacks else "a"), rows=2, cols=2)
        images = np.linspace(-1, 1, 24 * 16, dtype="float32").reshape(24, 4, 4, 1)
        return model.fit(
            images, batch_size=8, epochs=3, shuffle=False, callbacks=[grid, *callbacks], **QUIET
        )

    compare(make, train, tmp_path / "run", every=2)
    files = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "ab"]
    assert len(files[0]) == 5
    assert files[0] == files[1]


def test_own_callback_is_told_and_keeps_what_it_holds(tmp_path):
    class Own(keras.callbacks.Callback):
        told = None

        def __init__(self, setting):
            super().__init__()
            self.setting, self.seen, self.best = setting, [], {"at": (0, np.zeros(2))}

        def on_epoch_begin(self, epoch, logs=None):
            self.seen.append(epoch)

        def on_train_batch_end(self, batch, logs=None):
            self.best["at"] = batch, np.full(2, logs["loss"])

        def on_train_resumed(self, epoch):
            self.told = epoch

    with pytest.raises(Killed):
        arrays(classifier(), [Own("old"), Resume(tmp_path, every=1), kill_after(6)])
    own = Own("new")
    arrays(classifier(), [own, Resume(tmp_path)])
    assert own.told == 1  # five steps are saved, the sixth would have ended the second epoch
    assert own.seen == [0, 1, 2]
    assert own.setting == "new"  # what the callback is, not what it has seen
    assert own.best["at"][0] == 2


class Holder(keras.callbacks.Callback):
    """Shares a list with the script, and counts in a dict of a kind of its own."""

    def __init__(self, out):
        super().__init__()
        self.out, self.counts = out, collections.Counter()

    def on_train_batch_end(self, batch, logs=None):
        self.out.append(batch)
        self.counts[batch] += 1


def test_containers_of_a_callback_stay_the_same_objects(tmp_path):
    with pytest.raises(Killed):
        arrays(classifier(), [Holder([]), Resume(tmp_path, every=1), kill_after(6)])
    out = []
    holder = Holder(out)
    arrays(classifier(), [holder, Resume(tmp_path)])
    assert out == [0, 1, 2] * 3
    assert type(holder.counts) is collections.Counter
    assert holder.counts == {0: 3, 1: 3, 2: 3}


def test_best_weights_of_bfloat16_go_on(tmp_path):
    def make(seed):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        model = StepModel(inputs=inputs, outputs=layers.Dense(3, dtype="bfloat16")(inputs))
        model.compile("adam", LOSS)
        return model

    def train(model, callbacks):
        stop = keras.callbacks.EarlyStopping(
            "loss", patience=1, min_delta=1e9, restore_best_weights=True
        )
        return model.fit(FEATURES, CLASSES, 8, epochs=9, callbacks=[stop, *callbacks], **QUIET)

    compare(make, train, tmp_path / "a")


def test_csv_file_of_several_runs_keeps_their_rows(tmp_path):
    def train(model, name, *callbacks):
        log = keras.callbacks.CSVLogger(tmp_path / "all.csv", append=True)
        return arrays(model, [log, *callbacks, Resume(tmp_path / name, every=1)])

    train(classifier(), "first")
    with pytest.raises(Killed):
        train(classifier(), "second", kill_after(6))
    train(classifier(), "second")
    rows = (tmp_path / "all.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", *"012012"]


# A complete run


def test_complete_run_is_restored_and_nothing_is_trained(tmp_path, capsys):
    first = classifier()
    history = arrays(first, [Resume(tmp_path)]).history
    again = classifier(1)
    steps = []
    count = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: steps.append(1))
    result = again.fit(
        FEATURES, CLASSES, 8, epochs=3, verbose=2, callbacks=[count, Resume(tmp_path)]
    )
    assert not steps
    assert result.history == history
    assert equal(state(again), state(first))
    assert "The run is complete, after 9 steps" in capsys.readouterr().out


def test_more_epochs_go_on_from_a_complete_run(tmp_path):
    whole = same_seed(0)
    expected = whole.fit(FEATURES, CLASSES, 8, epochs=5, **QUIET).history
    arrays(same_seed(0), [Resume(tmp_path)])
    model = same_seed(0)
    history = model.fit(FEATURES, CLASSES, 8, epochs=5, callbacks=[Resume(tmp_path)], **QUIET)
    assert history.history == expected
    assert equal(state(model), state(whole))


def test_fresh_starts_over(tmp_path):
    arrays(classifier(), [Resume(tmp_path)])
    model = classifier(1)
    history = arrays(model, [Resume(tmp_path, fresh=True)])
    other = classifier(1)
    assert history.history == arrays(other, []).history


def test_same_model_goes_on_after_an_interruption(tmp_path):
    """As in a notebook, where the cell that fits is run again."""
    model = classifier(schedule_lr=LinearDecay(0.01, steps=9))
    with pytest.raises(Killed):
        arrays(model, [Resume(tmp_path, every=1), kill_after(5)])
    history = arrays(model, [Resume(tmp_path, every=1)]).history
    assert len(history["loss"]) == 3
    assert model.steps == 9


# What is written


def test_last_checkpoints_are_kept_and_no_more(tmp_path):
    arrays(classifier(), [Resume(tmp_path, every=1, keep=3)])
    names = ["epoch_0002_batch_000002", "epoch_0002_batch_000003", "epoch_0003_batch_000000"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", *names]
    assert checkpoints.names(tmp_path) == names


def test_checkpoint_is_readable_by_others(tmp_path):
    model = classifier()
    arrays(model, [Resume(tmp_path)])
    path = checkpoints.newest(tmp_path)
    other = classifier(1)
    other.load_weights(path / "model.weights.h5")
    assert equal(state(other), state(model))
    assert json.loads((path / "state.json").read_text())
    sums = (path / "SHA256SUMS").read_text().splitlines()
    assert [line.split()[1] for line in sums] == ["arrays.npz", "model.weights.h5", "state.json"]


def test_default_checkpoints_take_a_hundredth_of_the_time(tmp_path, monkeypatch):
    """A clock that only checkpoints and steps move."""
    now = [0.0]
    monkeypatch.setattr("customstep.resuming.time.monotonic", lambda: now[0])
    written = []
    write = Resume._write

    def slow(self):
        write(self)
        now[0] += 0.5
        written.append(now[0])

    monkeypatch.setattr(Resume, "_write", slow)
    tick = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: now.__setitem__(0, now[0] + 1)
    )
    classifier().fit(
        FEATURES, CLASSES, 8, epochs=60, callbacks=[tick, Resume(tmp_path)], **QUIET
    )
    assert np.diff(written)[:-1] == pytest.approx([50.5] * (len(written) - 2))
    assert len(written) == 5  # after 1, 51, 101 and 151 steps, and at the end


# What is refused


def refused(tmp_path, make=classifier, train=arrays, error=ValueError, **arguments):
    arrays(classifier(), [Resume(tmp_path)])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    model = make()
    weights = state(model)
    with pytest.raises(error) as raised:
        train(model, [Resume(tmp_path, **arguments)])
    assert equal(state(model), weights)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    message = str(raised.value)
    assert re.search(r"\. Expected .*; received .*\. ", message)
    return message


def test_other_optimizer_is_named(tmp_path):
    message = refused(
        tmp_path, lambda: classifier(optimizer=keras.optimizers.Adam(0.001, epsilon=0.5))
    )
    assert "compile.optimizer.epsilon is 1e-07 there and 0.5 here" in message
    assert "fresh=True" in message


def test_compiling_again_is_another_run(tmp_path):
    model = classifier()
    arrays(model, [Resume(tmp_path)])
    model.compile(keras.optimizers.Adam(0.001, epsilon=0.5), LOSS, ["accuracy"])
    with pytest.raises(ValueError, match="compile.optimizer.epsilon is 1e-07 there and 0.5 here"):
        arrays(model, [Resume(tmp_path)])


def test_other_batch_size_is_named(tmp_path):
    def train(model, callbacks):
        return model.fit(FEATURES, CLASSES, 9, epochs=3, callbacks=callbacks, **QUIET)

    assert "fit.batch_size is 8 there and 9 here" in refused(tmp_path, train=train)


def test_other_schedule_is_named(tmp_path):
    message = refused(tmp_path, lambda: classifier(schedule_lr=LinearDecay(0.001, 100)))
    assert "compile.schedule_lr is null there" in message


def test_other_network_is_named(tmp_path):
    def make():
        inputs = keras.Input((6,))
        outputs = layers.Dense(3)(layers.Dense(7)(inputs))
        model = StepModel(inputs=inputs, outputs=outputs)
        model.compile("adam", LOSS, ["accuracy"])
        return model

    assert "model.layers.1.units is 8 there and 7 here" in refused(tmp_path, make)


def test_other_data_are_named(tmp_path):
    def train(model, callbacks):
        return model.fit(FEATURES, CLASSES, 12, epochs=3, callbacks=callbacks, **QUIET)

    assert "data.batches is 3 there and 2 here" in refused(tmp_path, train=train)


def test_other_configuration_of_the_user_is_named(tmp_path):
    message = refused(tmp_path, configuration={"seed": 1})
    assert "configuration.seed is nothing there and 1 here" in message


def test_model_that_has_done_steps_before_is_named(tmp_path):
    def make():
        model = classifier()
        arrays(model, [])
        return model

    assert "steps_before_fit is 0 there and 9 here" in refused(tmp_path, make)


def test_fewer_epochs_than_done_are_refused(tmp_path):
    def train(model, callbacks):
        return model.fit(FEATURES, CLASSES, 8, epochs=2, callbacks=callbacks, **QUIET)

    assert "at least 3; received 2" in refused(tmp_path, train=train)


def test_two_that_restore_are_refused(tmp_path):
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(ValueError, match="restored from two sides"):
        arrays(classifier(), [backup, Resume(tmp_path)])


def test_keras_model_is_refused(tmp_path):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(3)(inputs))
    model.compile("adam", LOSS)
    with pytest.raises(TypeError, match="Expected a StepModel; received Functional"):
        arrays(model, [Resume(tmp_path)])


@pytest.mark.parametrize("arguments", [dict(every=0), dict(every="step"), dict(keep=0)])
def test_bad_arguments_are_refused(arguments, tmp_path):
    with pytest.raises(ValueError, match="Expected .*; received"):
        Resume(tmp_path, **arguments)


def test_other_versions_are_a_warning(tmp_path, monkeypatch):
    arrays(classifier(), [Resume(tmp_path)])
    monkeypatch.setattr("customstep.configuration.versions", lambda: {"keras": "9.0"})
    with pytest.warns(UserWarning, match="not bit for bit.*9.0 now"):
        arrays(classifier(), [Resume(tmp_path)])


# Callbacks are called as Keras calls them


class Seen(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.epochs, self.told = [], []

    def set_params(self, params):
        super().set_params(params)
        self.told.append(params["steps"] * params["epochs"])

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(epoch)


def test_callback_that_holds_others_is_called_itself():
    seen = Seen()
    seen.callbacks = [keras.callbacks.Callback()]
    arrays(classifier(), seen)
    assert seen.epochs == [0, 1, 2]
    assert seen.told == [9]


def test_list_of_callbacks_of_an_own_class_is_called_itself():
    class Own(keras.callbacks.CallbackList):
        ended = ()

        def on_epoch_end(self, epoch, logs=None):
            self.ended = (*self.ended, epoch)
            super().on_epoch_end(epoch, logs)

    seen = Seen()
    model = classifier()
    own = Own([seen], add_history=True, model=model, steps=3, epochs=3)
    arrays(model, own)
    assert own.ended == (0, 1, 2)
    assert seen.epochs == [0, 1, 2]
    with pytest.raises(ValueError, match="Pass the callbacks as a list"):
        arrays(model, Own([Resume("nowhere")], model=model, steps=3, epochs=3))


def test_list_of_callbacks_of_keras_may_hold_resume(tmp_path):
    def train(model, callbacks):
        held = keras.callbacks.CallbackList(
            callbacks, add_history=True, model=model, epochs=3, steps=3, verbose=0
        )
        return arrays(model, held)

    compare(same_seed, train, tmp_path / "a")
