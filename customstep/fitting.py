"""What happens around the steps of one `fit`: callbacks, and the place in the data."""

import os
from collections.abc import Iterator

import keras
import tensorflow as tf

from customstep import streams

__all__ = ["FitCallbacks"]

# The arguments of `fit` that a run has to have in common with the one it goes on from.
_KEPT = ("batch_size", "shuffle", "class_weight", "validation_split")


class FitCallbacks(keras.callbacks.CallbackList):
    """The callbacks of one `fit`, which tell a stream of data where the training is.

    Where an earlier process has done a part of the steps, the loop of Keras is led over them: the
    data are read up to the place, nothing is trained, and no callback hears of it.

    Args:
        callbacks: list of `keras.callbacks.Callback`.
        arguments: dict of the arguments of `fit`.
        resume: a `Resume` among the callbacks, or None; it is called after all others.
        params: dict of what callbacks are told of the run.
        **options: of `keras.callbacks.CallbackList`.
    """

    def __init__(self, callbacks, arguments, resume=None, params=None, **options):
        super().__init__(callbacks, **options)
        self.params = params or {}
        if resume is not None:
            self.callbacks.remove(resume)
            self.callbacks.append(resume)
        self._resume = resume
        self._found = resume and resume.found
        self._data, self._validation_data = arguments["x"], arguments["validation_data"]
        self._arguments = arguments
        self._batches = None  # Keras's iterator over the epochs
        self._followed = False  # whether the data know the step
        self._passed = 0  # batches of the present epoch that were done before
        self._stepped = False  # whether one of these was used for a step
        self._train_function = None  # the true one, while they are passed over

    @property
    def needs_variables(self):
        """Whether all variables of the model have to be there before the first step."""
        return self._found is not None

    def receive(self, batches):
        """Takes Keras's iterator over the epochs, which is made once in a `fit`."""
        self._batches = self._batches or batches

    def on_train_begin(self, logs=None):
        if self.params:
            self.set_params({"steps": self._batches.num_batches, **self.params})
        if self._resume is not None:
            kept = {name: self._arguments[name] for name in _KEPT}
            self._resume.check(self._batches, kept)
        if self._found is not None:
            loggers = [one for one in self.callbacks if isinstance(one, keras.callbacks.CSVLogger)]
            for logger, size in zip(loggers, self._found["csv"]):
                _append_to_csv(logger, size)
        super().on_train_begin(logs)
        if self._resume is not None:
            self._resume.restore(self.callbacks)
        if self._found is not None:
            self._pass_epochs()
            self._pass_validations()
            self._batches._num_batches = self._found["batches_in_epoch"]
            self._passed = self._found["batch"]
            if not self._passed:
                self._restore_random_states()

    def on_epoch_begin(self, epoch, logs=None):
        if not self._passed:
            self._follow(self.model.steps)
            super().on_epoch_begin(epoch, logs)
            return
        self._follow(self._found["epoch_step"])
        self._train_function = self.model.train_function
        self.model.train_function = self._pass_batches
        for callback in self.callbacks:
            if isinstance(callback, keras.callbacks.ProgbarLogger) or callback is self._resume:
                callback.on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch, logs=None):
        self._passed = 0
        super().on_epoch_end(epoch, logs)

    def on_train_batch_begin(self, batch, logs=None):
        if batch >= self._passed:
            super().on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch, logs=None):
        if batch >= self._passed:
            super().on_train_batch_end(batch, logs)
        elif self._train_function is not None and batch + 1 >= self._passed:
            self.close()
            self._restore_random_states()

    def on_test_begin(self, logs=None):
        streams.follow(self._validation_data, self.model.steps)
        super().on_test_begin(logs)

    def close(self):
        """Leaves the model as it was before `fit`, however that ended."""
        if self._train_function is not None:
            self.model.train_function, self._train_function = self._train_function, None

    @property
    def _begins_anew(self):
        """Whether each epoch begins with a new iteration of the data."""
        return self._batches.steps_per_epoch is None

    def _follow(self, step):
        """Tells the data the step of an epoch, if it begins with a new iteration of them."""
        if self._begins_anew or not self._followed:
            self._followed = True
            streams.follow(self._data, step)

    def _pass_epochs(self):
        """Reads the data of the epochs that are done, unless their order is known without."""
        step = self._found["configuration"]["steps_before_fit"]
        epochs = self._found["epoch"] - self._found["configuration"]["initial_epoch"]
        if not epochs or (self._begins_anew and streams.is_known(self._data)):
            return
        if self.params.get("verbose"):
            print(f"Reading the data of {epochs} epochs again, to find the place.", flush=True)
        for _ in range(epochs):
            self._follow(step)
            with self._batches.catch_stop_iteration():
                for _, _, iterator in self._batches:
                    step += _pass(iterator, self._batches.steps_per_execution)

    def _pass_validations(self):
        """Begins the validation data as often as they were, where that changes their order."""
        data, frequency = self._validation_data, self._arguments["validation_freq"]
        if not isinstance(data, tf.data.Dataset) or streams.is_known(data):
            return
        for epoch in range(self._found["configuration"]["initial_epoch"], self._found["epoch"]):
            whole = isinstance(frequency, int)
            if (epoch + 1) % frequency == 0 if whole else epoch + 1 in frequency:
                next(iter(data))
                if int(data.cardinality()) >= 0:  # then Keras begins them once more at the end
                    next(iter(data))

    def _restore_random_states(self):
        # Data that Python makes draw from these generators themselves, ahead of the training, and
        # have done so again while they were read up to the place.
        if not isinstance(self._data, (keras.utils.PyDataset, Iterator)):
            self._resume.restore_random_states()

    def _pass_batches(self, iterator):
        """In the place of the train function, for batches that are done."""
        if self._stepped:
            _pass(iterator, self._batches.steps_per_execution)
        else:  # a step makes all variables there are, those of metrics too
            self._stepped = True
            self._train_function(iterator)
            self._resume.restore_variables(metrics=True)
        return self._found["logs"]


def _pass(iterator, number):
    """Reads batches and drops them; returns how many, or raises `StopIteration` at the end."""
    for done in range(number):
        try:
            next(iterator)
        except StopIteration:
            if not done:
                raise
            return done
    return number


def _append_to_csv(logger, size):
    """Lets a `CSVLogger` go on in its file, which ends with the rows of the lost steps."""
    logger.append = True
    if os.path.exists(logger.filename) and os.path.getsize(logger.filename) > size:
        os.truncate(logger.filename, size)
