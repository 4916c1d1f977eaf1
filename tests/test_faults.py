"""What a run survives: signals at any moment, full disks, damaged files, a second run beside it."""

import errno
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from customstep import Resume, SampleGrid, checkpoints, pictures
from tests.descriptors import CLASSES, FEATURES, equal, gan, gan_compiled, state
from tests.interruptions import Killed, kill_after
from tests.soak import SOAK
from tests.test_resuming import arrays, classifier
from tests.victim import BATCHES, EPOCHS

ROOT = pathlib.Path(__file__).parent.parent
IMAGES = np.linspace(-1, 1, 24 * 16, dtype="float32").reshape(24, 4, 4, 1)


def start(out, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.victim", str(out), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_until_it_trains(process):
    line = process.stdout.readline()
    assert line == "begun\n", line + process.stderr.read()


def left_by(out):
    """The files of a run, but for the checkpoints; of the weights, the arrays."""
    found = {}
    for path in sorted(out.iterdir()):
        if path.suffix == ".h5":
            with h5py.File(path) as file:
                file.visititems(
                    lambda name, item: found.__setitem__(name, np.array(item).tobytes())
                    if isinstance(item, h5py.Dataset)
                    else None
                )
        elif path.name != "checkpoints":
            found[path.name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run leaves that nothing has interrupted, and how long its training takes."""
    out = tmp_path_factory.mktemp("whole")
    process = start(out)
    wait_until_it_trains(process)
    begin = time.monotonic()
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return left_by(out), time.monotonic() - begin


# Signals


def test_run_killed_at_random_moments_ends_as_if_it_never_was(whole, tmp_path):
    """Most of the time passes in the writing of checkpoints, and so do most of the kills."""
    expected, seconds = whole
    kills, rng = 24 if SOAK else 3, random.Random(0)
    steps = EPOCHS * BATCHES
    for number in range(kills):
        process = start(tmp_path)
        for _ in range(rng.randint(1, steps // (2 * kills))):
            wait_until_it_trains(process)
        time.sleep(rng.uniform(0, seconds / steps))
        process.kill()
        output, _ = process.communicate()
        if "ended" in output and number > 0:
            break  # half of the steps were left, but this process was kept waiting
        assert process.returncode == -signal.SIGKILL
    process = start(tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert left_by(tmp_path) == expected
    assert len(checkpoints.names(tmp_path / "checkpoints")) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_the_step_and_ends_with_a_line(number, whole, tmp_path, hears_interrupts):
    process = start(tmp_path, "--every", "1000")
    wait_until_it_trains(process)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    first, second = errors.strip().splitlines()
    assert first == "Finishing the step and saving it; again to stop at once."
    assert re.match(rf"{number.name} after step \d+, saved; the same command goes on", second)
    process = start(tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert left_by(tmp_path) == whole[0]


def test_own_handlers_of_a_script_stay(tmp_path, hears_interrupts):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        once = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: signal.raise_signal(signal.SIGTERM)
        )
        arrays(classifier(), [once, Resume(tmp_path)])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(heard) == 9
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signal_during_validation_waits_for_the_epoch(tmp_path, capsys, hears_interrupts):
    ask = keras.callbacks.LambdaCallback()
    ask.on_test_begin = lambda logs=None: signal.raise_signal(signal.SIGINT)
    model = classifier()
    with pytest.raises(SystemExit) as ended:
        model.fit(
            FEATURES, CLASSES, 8, epochs=3, validation_data=(FEATURES, CLASSES), verbose=0,
            callbacks=[ask, Resume(tmp_path, every=100)],
        )  # fmt: skip
    assert ended.value.code == 130
    assert checkpoints.names(tmp_path) == ["epoch_0001_batch_000000"]
    assert "SIGINT after step 3, saved" in capsys.readouterr().err


# Disks


class Full(OSError):
    def __init__(self):
        super().__init__(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_costs_a_checkpoint_and_not_the_run(tmp_path, monkeypatch):
    """The first checkpoint is written, then the disk is full for a while."""
    whole = classifier()
    expected = arrays(whole, []).history
    model, rooms = classifier(), iter([True, False, False])
    save = np.savez

    def savez(*args, **kwargs):
        if not next(rooms, True):
            raise Full
        save(*args, **kwargs)

    monkeypatch.setattr("customstep.checkpoints.np.savez", savez)
    message = "There is no checkpoint of step [46].*No space left"
    with pytest.warns(UserWarning, match=message) as seen:
        history = arrays(model, [Resume(tmp_path, every=2)])
    assert sum("no checkpoint" in str(warning.message) for warning in seen) == 2
    assert history.history == expected
    assert sorted(path.name for path in tmp_path.iterdir())[1:] == checkpoints.names(tmp_path)
    assert checkpoints.names(tmp_path)[-1] == "epoch_0003_batch_000000"


def limited(bytes_a_file):
    """Runs in a child process: no file may grow beyond a size, as if the disk were full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_a_file, bytes_a_file))


def test_files_that_cannot_be_written_leave_what_was_there(whole, tmp_path):
    """The true writers of Keras, h5py and numpy, in a process whose files may not grow."""
    shutil.rmtree(tmp_path)
    process = start(tmp_path, "--every", "30")
    process.communicate(timeout=120)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"}
    process = start(tmp_path, "--fresh", preexec_fn=lambda: limited(1000))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "File too large" in errors.splitlines()[-1]
    left = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"}
    assert {p: left.get(p) for p in before if "checkpoints" not in p.parts} == {
        p: content for p, content in before.items() if "checkpoints" not in p.parts
    }


@pytest.fixture
def read_only(nobody):
    """A callable that makes its `folder` read-only, for the superuser, too, who then is nobody."""

    def make():
        nobody.folder.chmod(0o555)
        nobody()

    make.folder = nobody.folder
    return make


def test_model_in_a_read_only_folder_stays_as_it_was(read_only):
    model = gan()
    model.compile(**gan_compiled())
    paths = [read_only.folder / name for name in ("gan.keras", "gan.weights.h5")]
    model.save(paths[0])
    model.save_weights(paths[1])
    before = [path.read_bytes() for path in paths]
    read_only()
    for save, path in zip((model.save, model.save_weights), paths):
        with pytest.raises(PermissionError):
            save(path)
    assert [path.read_bytes() for path in paths] == before


def test_folder_that_becomes_read_only_costs_checkpoints_and_sheets_and_not_the_run(read_only):
    def train(*callbacks):
        model = gan()
        model.compile(**gan_compiled())
        return model.fit(
            IMAGES, batch_size=8, epochs=2, verbose=0, shuffle=False, callbacks=list(callbacks)
        ).history

    keras.utils.set_random_seed(0)
    expected = train()
    moments = iter([lambda: None, read_only])
    in_the_middle = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: next(moments, int)()
    )
    keras.utils.set_random_seed(0)
    with pytest.warns(UserWarning) as seen:
        history = train(
            in_the_middle, SampleGrid(read_only.folder, rows=2), Resume(read_only.folder, every=1)
        )
    assert history == expected
    told = [str(warning.message) for warning in seen]
    assert any("There is no checkpoint of step 2" in one for one in told)
    assert any("epoch_0001.png' was not written" in one for one in told)
    assert checkpoints.names(read_only.folder) == ["epoch_0000_batch_000001"]


def test_folder_that_cannot_be_made_is_told_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("")
    model = classifier()
    weights = state(model)
    with pytest.raises(OSError):
        arrays(model, [Resume(tmp_path / "file" / "checkpoints")])
    assert equal(state(model), weights)


# Damaged files


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def empty(path):
    path.write_bytes(b"")


def delete(path):
    path.unlink()


FILES = ("model.weights.h5", "arrays.npz", "state.json", "SHA256SUMS")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [truncate, flip, empty, delete])
def test_damaged_checkpoint_is_seen_and_the_one_before_is_used(damage, name, tmp_path):
    for folder in ("epoch_0001_batch_000002", "epoch_0002_batch_000000"):
        epoch, batch = int(folder[6:10]), int(folder[-6:])
        with checkpoints.write(tmp_path, epoch, batch, {"epoch": epoch}, keep=2) as path:
            (path / "model.weights.h5").write_bytes(bytes(range(100)))
    damage(tmp_path / "epoch_0002_batch_000000" / name)
    with pytest.warns(UserWarning, match="epoch_0002_batch_000000' is damaged: .*is used"):
        path = checkpoints.newest(tmp_path)
    assert path.name == "epoch_0001_batch_000002"
    assert checkpoints.read(path) == {"epoch": 1}
    damage(path / name)
    with pytest.raises(ValueError, match=r"No checkpoint .* is intact\. Expected .*; received"):
        checkpoints.newest(tmp_path)


def test_run_goes_on_from_before_the_damage_and_ends_alike(tmp_path):
    whole = classifier()
    expected = arrays(whole, []).history
    with pytest.raises(Killed):
        arrays(classifier(), [Resume(tmp_path, every=1), kill_after(6)])
    flip(tmp_path / "epoch_0001_batch_000002" / "model.weights.h5")
    model = classifier()
    with pytest.warns(UserWarning, match="is damaged"):
        history = arrays(model, [Resume(tmp_path, every=1)])
    assert history.history == expected
    assert equal(state(model), state(whole))


@pytest.mark.parametrize("damage", [truncate, flip, empty])
def test_damaged_model_is_an_error_and_no_model(damage, tmp_path):
    model = gan()
    model.compile(**gan_compiled())
    model.save(tmp_path / "gan.keras")
    damage(tmp_path / "gan.keras")
    with pytest.raises(Exception):  # zipfile's, h5py's or Keras's own
        keras.models.load_model(tmp_path / "gan.keras")


# Data and neighbours


def test_pipeline_that_raises_leaves_the_last_checkpoint_and_says_where(tmp_path):
    def batches(broken):
        for number in range(9):
            if broken and number == 5:
                raise RuntimeError("the disk of the images is gone")
            yield FEATURES[:8], CLASSES[:8]

    def data(broken):
        spec = tf.TensorSpec((8, 6)), tf.TensorSpec((8,), tf.int32)
        return tf.data.Dataset.from_generator(lambda: batches(broken), output_signature=spec)

    def train(model, broken):
        arguments = dict(epochs=2, verbose=0, shuffle=False)
        return model.fit(
            data(broken).apply(tf.data.experimental.assert_cardinality(9)),
            callbacks=[Resume(tmp_path / ("a" if broken is None else "b"), every=2)],
            **arguments,
        )

    whole, model = classifier(), classifier()
    expected = train(whole, None).history
    with pytest.raises(Exception, match="the disk of the images is gone") as raised:
        train(model, True)
    assert "The last checkpoint is" in "".join(raised.value.__notes__)
    assert checkpoints.names(tmp_path / "b")[-1] == "epoch_0000_batch_000004"
    again = classifier(1)
    assert train(again, False).history == expected
    assert equal(state(again), state(whole))


def test_second_run_on_the_same_folder_is_refused_and_the_first_one_ends(whole, tmp_path):
    first = start(tmp_path)
    wait_until_it_trains(first)
    second = start(tmp_path)
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 1
    assert f"that of process {first.pid}, which is alive" in errors
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 0, errors
    assert left_by(tmp_path) == whole[0]


def test_sheet_that_cannot_be_written_does_not_end_the_run(tmp_path, monkeypatch):
    """Before training it does: then nothing is lost."""
    save, rooms = pictures.save_png, iter([True, False])

    def save_png(*args, **kwargs):
        if not next(rooms, True):
            raise Full
        save(*args, **kwargs)

    monkeypatch.setattr("customstep.pictures.save_png", save_png)
    model = gan()
    model.compile(**gan_compiled())
    with pytest.warns(UserWarning, match="epoch_0001.png' was not written.*No space left"):
        model.fit(
            IMAGES, batch_size=8, epochs=2, verbose=0, callbacks=[SampleGrid(tmp_path, rows=2)]
        )
    names = ["epoch_0000.png", "epoch_0002.png", "training.gif"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    monkeypatch.setattr("customstep.pictures.save_png", lambda *args: (_ for _ in ()).throw(Full()))
    with pytest.raises(OSError, match="No space left"):
        model.fit(IMAGES, batch_size=8, verbose=0, callbacks=[SampleGrid(tmp_path / "b", rows=2)])
