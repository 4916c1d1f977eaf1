"""A run that is killed and started again goes on as if nothing had happened."""

import contextlib
import json
import math
import os
import pathlib
import random
import signal
import sys
import threading
import time
import types
import warnings

import keras
import numpy as np

from customstep import checkpoints, configuration, replicas
from customstep.checks import check_integer, check_path

__all__ = ["Resume"]

_SHARE = 0.01  # of the time that checkpoints may take, where `every` is None
_PATIENCE = 60  # seconds after a checkpoint that could not be written


class Resume(keras.callbacks.Callback):
    """Makes a run exactly resumable: start the same command again, and it goes on where it was.

    However the process ended, by SIGKILL too, the finished run has the weights, the states of
    optimizers, averages, schedules, conditions and random generators, the metrics, the history and
    the files of the other callbacks, bit for bit, that it would have had without the interruption.
    Once the run is complete, the same command restores its end and trains nothing.

    `fit` needs no other argument for it, `initial_epoch` included. The data go on in their place:
    at once where they begin with `streams.index_batches`, as those of `load_images` do, else by
    reading again what was read before, which is exact where the same seeds give the same data.
    Of the other callbacks, what they keep in attributes as numbers, texts, arrays, and lists or
    dicts of these is restored after `on_train_begin`; one that has to do more may define
    `on_train_resumed(epoch)`. `CSVLogger` goes on in its file; `TensorBoard` begins another one, in
    which the lost steps stand again. Validation data that shuffle begin again in their order unless
    they are a generator or cut by `validation_steps`. At SIGINT and SIGTERM, unless the
    script handles them itself, the step is finished and saved, and the process ends with
    `SystemExit`.

    A checkpoint is written beside its place and renamed, and verified by checksums when it is
    read; if the last one is damaged, the one before is used, with a warning. One that cannot be
    written, such as on a full disk, is a warning, and training goes on.

    Args:
        directory: folder for the checkpoints, one for each run; it is made if missing.
        every: int, a checkpoint every so many steps; "epoch", after each epoch; None, as often as
            takes 1 % of the time, which on several workers is after each epoch. There is always
            one at the end.
        keep: how many checkpoints stay, at least 1; with 2, one may be damaged.
        fresh: True removes the checkpoints in `directory` and starts over; not where
            `customstep launch --max-restarts` starts the script again.
        configuration: dict of anything else that has to be the same to go on, such as a seed.

    Raises:
        ValueError: an argument is out of its range; in `fit`, the checkpoint is of another model,
            `compile`, data or `configuration`, which is named, or none of several is intact.
        BlockingIOError: in `fit`, another process trains with the same `directory`.
        TypeError: in `fit`, the model is not a `StepModel`.

    Example:

        model.fit(data, epochs=100, callbacks=[customstep.Resume("runs/mine/checkpoints")])
    """

    def __init__(self, directory, *, every=None, keep=2, fresh=False, configuration=None):
        super().__init__()
        check_path("directory", directory)
        if every not in (None, "epoch"):
            check_integer("every", every, 1)
        check_integer("keep", keep, 1)
        self.directory = pathlib.Path(directory)
        self.every, self.keep, self.fresh = every, keep, fresh
        self.configuration = dict(configuration or {})
        self.found = None  # the state that this fit goes on from
        self._path = None  # the checkpoint of it
        self._signal = None  # that asked for the end
        self._begin = None  # the other callbacks, and their state when `fit` began

    # -- Before the first step --------------------------------------------------------------

    @contextlib.contextmanager
    def running(self, model, epochs, initial_epoch):
        """Holds the folder for one `fit`, and looks for what it goes on from.

        Args:
            model: `StepModel`.
            epochs, initial_epoch: as for `fit`.

        Yields:
            The epoch that `fit` is to begin with.
        """
        several = replicas.several_workers(model.distribute_strategy)
        if several and isinstance(self.every, int):
            raise ValueError(
                "Several workers cannot save within an epoch. Expected `every='epoch'` or None; "
                f"received {self.every}. Leave `every` out."
            )
        self._every = "epoch" if several and self.every is None else self.every
        self._initial_epoch, self._signal, self.found = initial_epoch, None, None
        self._begin = None
        with contextlib.ExitStack() as stack:
            stack.callback(setattr, self, "_batches", None)
            if replicas.is_chief(model.distribute_strategy):
                stack.enter_context(checkpoints.lock(self.directory))
                if self.fresh and replicas.RESTARTED not in os.environ:
                    for name in checkpoints.names(self.directory):
                        checkpoints.remove(self.directory, name)
            replicas.meet(model.distribute_strategy)
            self._path = checkpoints.newest(self.directory)
            if not several:  # who would hear of it at different steps
                stack.enter_context(self._signals())
            if self._path is None:
                self._place = self._saved_place = (initial_epoch, 0)
                yield initial_epoch
                return
            self.found = checkpoints.read(self._path)
            self._place = self._saved_place = self.found["epoch"], self.found["batch"]
            if self._place > (epochs, 0):
                least = self.found["epoch"] + (self.found["batch"] > 0)
                raise ValueError(
                    f"The run in '{self.directory}' has done more than it is asked to. Expected "
                    f"`epochs` of at least {least}; received {epochs}. Raise it, or "
                    "start over with `fresh=True`."
                )
            stopped = self.found["stopped"] and not self.found["batch"]
            yield epochs if stopped else self.found["epoch"]

    def check(self, batches, fit):
        """Raises a `ValueError` where the checkpoint is of another configuration.

        Args:
            batches: Keras's iterator over the epochs.
            fit: dict of arguments of `fit` that have to be the same.
        """
        model, self._batches = self.model, batches
        known = model.resumed is not None and model.resumed.directory == self.directory
        if not known or self.found is None:
            parts = configuration.describe(model)
            model.resumed = types.SimpleNamespace(  # the same model may be fitted again
                directory=self.directory, parts={**parts, "steps_before_fit": model.steps}
            )
        self._configuration = {
            **model.resumed.parts,
            "data": configuration.describe_data(batches),
            "initial_epoch": self._initial_epoch,
            "fit": json.loads(json.dumps(fit, default=str)),
            "configuration": json.loads(json.dumps(self.configuration, default=str)),
        }
        if self.found is None:
            return
        different = configuration.differences(self.found["configuration"], self._configuration)
        if different:
            named = [f"{path} is {old} there and {new} here" for path, old, new in different]
            named[3:] = [f"{len(named) - 3} more"] if len(named) > 3 else []
            raise ValueError(
                f"The checkpoints in '{self.directory}' are of another run. Expected one of the "
                f"same configuration; received a difference: {'; '.join(named)}. Go back to it, "
                "name another folder, or start over with `fresh=True`, which scripts call --fresh."
            )
        changed = configuration.differences(self.found["versions"], configuration.versions())
        if changed:
            named = ", ".join(f"{name} {old} then and {new} now" for name, old, new in changed)
            warnings.warn(
                "The run goes on, but not bit for bit. Expected the versions that it began with; "
                f"received {named}. Install those to repeat it exactly.",
                stacklevel=2,
            )

    # -- Going on ---------------------------------------------------------------------------

    def restore(self, callbacks):
        """Brings back what was saved of the model and of the callbacks, once `fit` has begun."""
        self._begin = [
            (callback, {name: checkpoints.digest(value) for name, value in _plain(callback)})
            for callback in _stateful(callbacks)
        ]
        if self.found is None:
            return
        if self.params.get("verbose"):
            print(self._announcement(), flush=True)
        epoch, batch, saved = (self.found[name] for name in ("epoch", "batch", "callbacks"))
        for callback, _ in self._begin:
            state = next((each for each in saved if each[0] == type(callback).__name__), None)
            if state is not None:
                saved.remove(state)
                for name, value in state[1].items():
                    _refill(callback, name, value)
        for callback in callbacks:
            if hasattr(callback, "on_train_resumed"):
                callback.on_train_resumed(epoch if batch else epoch - 1)
        self.restore_variables()
        self.model.stop_training = self.found["stopped"]

    def restore_variables(self, metrics=False):
        """Brings back the variables of the model and, if all exist, those of its metrics."""
        if not self.model.optimizer.built:
            self.model._build_optimizers()
        self.model.load_weights(self._path / "model.weights.h5")
        if metrics:
            saved = self.found["metrics"]
            for variable, values in zip(self.model.metrics_variables, saved, strict=True):
                replicas.assign_parts(variable, values)

    def restore_random_states(self):
        """Brings back the generators of Python and of numpy."""
        random.setstate(self.found["python_random"])
        np.random.set_state(self.found["numpy_random"])

    def _announcement(self):
        epoch, batch, step = (self.found[name] for name in ("epoch", "batch", "step"))
        place = f"epoch {epoch + 1}, batch {batch + 1}" if batch else f"epoch {epoch + 1}"
        if self.params["epochs"] == epoch or self.found["stopped"]:
            return f"The run is complete, after {step} steps; its end is in '{self._path}'."
        return f"Going on with {place}, after {step} steps, from '{self._path}'."

    # -- Saving -----------------------------------------------------------------------------

    def on_train_begin(self, logs=None):
        if not hasattr(self.model, "resumed"):
            raise TypeError(
                "Resume cannot go on with this model. Expected a StepModel; received "
                f"{type(self.model).__name__}. Derive the model from it, or use "
                "`keras.callbacks.BackupAndRestore`."
            )
        self._logs = {}
        self._next = time.monotonic() + 1  # of the clock, where `every` is None
        self._since = 0  # steps done since the last checkpoint

    def on_epoch_begin(self, epoch, logs=None):
        if self._place[0] == epoch and self._place[1]:
            self._epoch_step = self.found["epoch_step"]
        else:
            self._place, self._epoch_step = (epoch, 0), self.model.steps

    def on_train_batch_end(self, batch, logs=None):
        epoch, done = self._place
        self._since += batch + 1 - done
        self._place, self._logs = (epoch, batch + 1), logs
        self._save_if_due()

    def on_epoch_end(self, epoch, logs=None):
        self._place, self._logs = (epoch + 1, 0), {}
        # The last one is written here, before the end of `fit` puts averages in place.
        if epoch + 1 == self.params["epochs"] or self.model.stop_training:
            self._next, self._since = -math.inf, math.inf
        self._save_if_due(ends_epoch=True)

    def on_train_interrupted(self, error):
        """Says where the last checkpoint is; `StepModel.fit` calls it with what has ended it."""
        names = () if self._begin is None else checkpoints.names(self.directory)
        if names and not isinstance(error, SystemExit):
            error.add_note(
                f"The last checkpoint is '{self.directory / names[-1]}'; the same command goes on "
                "from there."
            )

    def _save_if_due(self, ends_epoch=False):
        if self._every is None:
            due = time.monotonic() >= self._next
        elif self._every == "epoch":
            due = ends_epoch
        else:
            due = self._since >= self._every
        if not due and self._signal is None:
            return
        saved = self._save()
        if self._signal is not None:
            self._leave(saved)

    def _save(self):
        """Writes a checkpoint, unless there is one of this place; returns whether there is now."""
        if self._place == self._saved_place:
            return True
        begin = time.monotonic()
        try:
            self._write()
        except OSError as error:
            self._next = time.monotonic() + _PATIENCE
            self._since = 0
            warnings.warn(
                f"There is no checkpoint of step {self.model.steps}. Expected a folder "
                f"'{self.directory}' that can be written to, and room in it; received "
                f"{type(error).__name__}: {error}. Training goes on; make room, or the steps since "
                "the last checkpoint are lost if it dies.",
                stacklevel=2,
            )
            return False
        self._saved_place, self._since = self._place, 0
        now = time.monotonic()
        self._next = now + max(1, (now - begin) * (1 / _SHARE - 1))
        return True

    def _write(self):
        if not replicas.is_chief(self.model.distribute_strategy):
            self.model.save_weights(self.directory / "model.weights.h5")  # which writes nothing
            return
        epoch, batch = self._place
        state = {
            "configuration": self._configuration,
            "versions": configuration.versions(),
            "epoch": epoch,
            "batch": batch,
            "step": self.model.steps,
            "epoch_step": self._epoch_step,
            "logs": {name: _as_plain(value) for name, value in (self._logs or {}).items()},
            "stopped": self.model.stop_training,
            "batches_in_epoch": self._batches._num_batches,  # Keras keeps that of the first epoch
            "csv": [_size(callback) for callback, _ in self._begin if _is_csv(callback)],
            "callbacks": [_changed(callback, begin) for callback, begin in self._begin],
            "metrics": [replicas.parts(v) for v in self.model.metrics_variables] if batch else [],
            "python_random": random.getstate(),
            "numpy_random": np.random.get_state(),
        }
        with checkpoints.write(self.directory, epoch, batch, state, keep=self.keep) as folder:
            self.model.save_weights(folder / "model.weights.h5")

    # -- Signals ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _signals(self):
        """Within it, the first SIGINT or SIGTERM asks for a last checkpoint; the next one kills."""
        if threading.current_thread() is not threading.main_thread():  # only that one hears them
            yield
            return
        defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
        ours = [number for number in defaults if signal.getsignal(number) == defaults[number]]

        def reset():
            for number in ours:
                signal.signal(number, defaults[number])

        process = os.getpid()

        def ask(number, frame):
            reset()
            if os.getpid() != process:  # a child, forked from this one
                signal.raise_signal(number)
                return
            self._signal = number
            print("\nFinishing the step and saving it; again to stop at once.", file=sys.stderr)

        for number in ours:
            signal.signal(number, ask)
        try:
            yield
        finally:
            reset()
        if self._signal is not None:  # it came after the last step
            signal.raise_signal(self._signal)

    def _leave(self, saved):
        name = signal.Signals(self._signal).name
        where = f"the same command goes on from '{self.directory}'"
        what = "saved" if saved else "not saved"
        print(f"{name} after step {self.model.steps}, {what}; {where}.", file=sys.stderr)
        raise SystemExit(128 + self._signal)


def _stateful(callbacks):
    """The callbacks whose state is kept."""
    without = Resume, keras.callbacks.ProgbarLogger
    return [callback for callback in callbacks if not isinstance(callback, without)]


def _as_plain(log):
    return log if checkpoints.is_plain(log) else np.array(log)


def _plain(callback):
    """What a callback keeps in attributes as plain data: pairs of a name and a value."""
    return [pair for pair in vars(callback).items() if checkpoints.is_plain(pair[1])]


def _changed(callback, begin):
    """The name of a callback's class, and the plain attributes that are not as they were."""
    now = _plain(callback)
    changed = {name: v for name, v in now if checkpoints.digest(v) != begin.get(name)}
    return [type(callback).__name__, changed]


def _refill(callback, name, value):
    """Gives an attribute its value; a container stays the same object, which others may hold."""
    present = getattr(callback, name, None)
    if isinstance(present, dict) and isinstance(value, dict):
        present.clear()
        present.update(value)
    elif isinstance(present, list) and isinstance(value, list):
        present[:] = value
    else:
        setattr(callback, name, value)


def _is_csv(callback):
    return isinstance(callback, keras.callbacks.CSVLogger)


def _size(logger):
    """How long the file of a `CSVLogger` is, in bytes."""
    return os.path.getsize(logger.filename) if os.path.exists(logger.filename) else 0
