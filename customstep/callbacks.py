"""Callbacks: what happens beside the steps.

`Resume` loses nothing, `SampleGrid` shows a run, `Quality` measures its images, `Unfreeze` frees
layers in time.
"""

import pathlib
import re
import warnings

import keras
import numpy as np
from PIL import Image

from customstep import grids, pictures, replicas, selection
from customstep.checks import check_integer, check_path
from customstep.evaluation import evaluate, warn_of_few
from customstep.features import Features, extract
from customstep.resuming import Resume

__all__ = ["Quality", "Resume", "SampleGrid", "Unfreeze"]


class SampleGrid(keras.callbacks.Callback):
    """Sheets of the same samples, epoch after epoch, and an animation of them.

    Use it to see whether a GAN learns. In `directory` it writes

    - `epoch_0000.png`, the model before training, then `epoch_0001.png` and so on;
    - `training.gif`, all these sheets, once training ends;
    - `interrupted.png`, and the animation so far, if training dies. An error while writing them
      becomes a note on the error that ended the training.

    A picture that cannot be written, such as on a full disk, is a warning; before training it is
    an error.

    Every sheet shows the same latent vectors, so a tile shows what the training changed. Its PNG
    metadata are `model`, `epoch`, `step` and `seed`. A run that
    continues with `fit(initial_epoch=...)` redraws the sheet of the epoch where it starts, and its
    animation begins with the earlier sheets of the same size in `directory`.

    For a table of the losses, use `keras.callbacks.CSVLogger`.

    Args:
        directory: folder for the files; it is made if missing, and sheets in it are overwritten.
        rows: tiles down, at least 1; None for 8 or, where the model has `num_classes`, one for
            each class. Row r of a conditional model shows class r, beginning again after the last.
        cols: tiles across, at least 1.
        every: epochs from one sheet to the next, at least 1; the last epoch always has one.
        seed: of the latent vectors, 0 to 2**63 - 1.
        scale: every image pixel becomes `scale` x `scale` pixels, at least 1.

    Raises:
        ValueError: a number is out of its range.
        TypeError: `directory` is not a path; or, in `fit`, the model has no
            `sample(n, seed=, labels=)` or no `image_range`.

    Example:

        gan.fit(images, epochs=10, callbacks=[SampleGrid("runs/samples")])
    """

    def __init__(self, directory, *, rows=None, cols=8, every=1, seed=0, scale=2):
        super().__init__()
        check_path("directory", directory)
        if rows is not None:
            check_integer("rows", rows, 1)
        check_integer("cols", cols, 1)
        check_integer("every", every, 1)
        check_integer("seed", seed, 0, 2**63 - 1)
        check_integer("scale", scale, 1)
        self.directory = pathlib.Path(directory)
        self.rows, self.cols, self.every, self.seed, self.scale = rows, cols, every, seed, scale
        self._epoch = None  # how many are done; None while no epoch has begun
        self._frames = {}  # epoch: the path of its sheet

    def on_train_begin(self, logs=None):
        self._epoch, self._frames = None, {}
        _check_samples(self)

    def on_epoch_begin(self, epoch, logs=None):
        # Not in `on_train_begin`, which knows neither the epoch nor what `BackupAndRestore` loads.
        if self._epoch is None:
            self._epoch = epoch
            self._frames = self._sheets_before(epoch)
            self._write_frame()

    def on_epoch_end(self, epoch, logs=None):
        self._epoch = epoch + 1
        if self._epoch % self.every == 0:
            self._try(f"epoch_{self._epoch:04d}.png", self._write_frame)

    def on_train_end(self, logs=None):
        if self._epoch is not None:
            if self._epoch not in self._frames:
                self._try(f"epoch_{self._epoch:04d}.png", self._write_frame)
            self._try("training.gif", self._write_gif)
            if replicas.is_chief(self.model.distribute_strategy):
                (self.directory / "interrupted.png").unlink(missing_ok=True)  # of an earlier try
        self._epoch = None

    def on_train_interrupted(self, error):
        """Writes what there is to see; `StepModel.fit` calls it with the error that ends it."""
        if self._epoch is None:
            return
        for name, write in (
            ("interrupted.png", lambda: self._write_sheet("interrupted.png")),
            ("training.gif", self._write_gif),
        ):
            try:
                write()
            except Exception as failure:  # the error that ended the training stays in sight
                error.add_note(f"'{self.directory / name}' was not written: {failure!r}")
        self._epoch = None

    def _try(self, name, write):
        """Writes a picture, which is not worth the training if the disk is full."""
        try:
            write()
        except OSError as error:
            warnings.warn(
                f"The picture '{self.directory / name}' was not written. Expected a folder that "
                f"can be written to, and room in it; received {type(error).__name__}: {error}. "
                "Training goes on; make room for the next one.",
                stacklevel=2,
            )

    def _write_frame(self):
        self._frames[self._epoch] = self._write_sheet(f"epoch_{self._epoch:04d}.png")

    def _write_sheet(self, name):
        classes = getattr(self.model, "num_classes", None)
        rows = self.rows or classes or 8
        labels = None
        if classes is not None:
            labels = np.resize(np.arange(classes), rows).repeat(self.cols)
        images = self.model.sample(rows * self.cols, seed=self.seed, labels=labels)
        sheet = grids.contact_sheet(
            images, rows, self.cols, scale=self.scale, image_range=self.model.image_range
        )
        metadata = {
            "model": self.model.name,
            "epoch": self._epoch,
            "step": self.model.steps,
            "seed": self.seed,
        }
        pictures.save_png(self.directory / name, sheet, metadata)
        return self.directory / name

    def _write_gif(self):
        if not replicas.is_chief(self.model.distribute_strategy):
            return  # the sheets are with the worker that wrote them
        sheets = []
        for _, path in sorted(self._frames.items()):
            if path.exists():
                with Image.open(path) as image:
                    sheets.append(np.asarray(image))
        # A run may continue another one that drew sheets of another size.
        sheets = [sheet for sheet in sheets if sheet.shape == sheets[-1].shape]
        pictures.save_gif(self.directory / "training.gif", sheets)

    def _sheets_before(self, epoch):
        """The sheets of earlier epochs, `{epoch: path}`; later ones are of another run."""
        sheets = {}
        for path in self.directory.glob("epoch_*.png"):
            match = re.fullmatch(r"epoch_(\d{4,})", path.stem)
            if match and int(match[1]) < epoch:
                sheets[int(match[1])] = path
        return sheets


class Quality(keras.callbacks.Callback):
    """Measures the images of a GAN after an epoch and logs how near they come to real ones.

    Use it to choose the best epoch rather than the last. The logs of the epoch get
    `frechet_distance`, `kernel_distance`, `precision`, `recall`, `density` and `coverage`, and
    `smallest_class` and `largest_class` where the network knows classes; see
    `evaluation.Evaluation.logs`. Callbacks after it in the list can monitor them. Images that are
    not finite have NaN for all of them.

    The Frechet distance is too large on few samples: it compares the epochs of runs that take as
    many. `customstep evaluate` measures a finished model on more.

    Args:
        real: real images that the model is not trained on, uint8 `(n, height, width, channels)`,
            or their `Features`.
        network: as for `features.extract`.
        samples: how many images to generate, at least 6; always of the same latent vectors. A
            conditional GAN makes as many of each class.
        every: epochs from one measurement to the next, at least 1. The first epoch always has one,
            and the logs of the epochs between repeat the last one: let an `EarlyStopping` that
            monitors them have a multiple of it as its patience.
        seed: of the latent vectors, 0 to 2**63 - 1.

    Raises:
        ValueError: a number is out of its range, or images do not fit the network; in `fit`, those
            of the model do not.
        TypeError: in `fit`, the model has no `sample(n, seed=)` or no `image_range`.

    Warns:
        UserWarning: in `fit`, there are fewer than ten images for each feature; see
            `evaluation.evaluate`.

    Example:

        images = read_images("fashion_mini", "test").images
        best = ModelCheckpoint("best.keras", "frechet_distance", mode="min", save_best_only=True)
        gan.fit(data, epochs=10, callbacks=[Quality(images), best])
    """

    def __init__(self, real, *, network=None, samples=2000, every=1, seed=0):
        super().__init__()
        check_integer("samples", samples, 6)
        check_integer("every", every, 1)
        check_integer("seed", seed, 0, 2**63 - 1)
        self._real = real if isinstance(real, Features) else extract(real, network)
        self._network = network
        self.samples, self.every, self.seed = samples, every, seed
        self._last = {}  # what was measured last

    def on_train_begin(self, logs=None):
        self._last = {}
        _check_samples(self)
        self._measure(6)  # a mistake is to be found before an epoch of training
        warn_of_few(min(self.samples, len(self._real)), self._real.values.shape[1])

    def on_epoch_end(self, epoch, logs=None):
        if not self._last or (epoch + 1) % self.every == 0:
            self._last = self._measure(self.samples)
        if logs is not None:
            logs.update(self._last)

    def _measure(self, samples):
        images = self.model.sample(samples, seed=self.seed)
        finite = np.isfinite(images)
        images = np.where(finite, images, self.model.image_range[0])
        generated = extract(images, self._network, image_range=self.model.image_range)
        with warnings.catch_warnings():  # which would say it again at every epoch
            warnings.filterwarnings("ignore", "There are few images")
            logs = evaluate(generated, self._real).logs()
        return logs if finite.all() else dict.fromkeys(logs, np.nan)


class Unfreeze(keras.callbacks.Callback):
    """Gradual unfreezing: from given epochs on, frozen parts of a model train again.

    Use it with `PartiallyFrozen` to train a new head first and the layers below it later (Howard
    and Ruder 2018, arXiv:1801.06146, section 3.3). The optimizer keeps the state it has. The step
    is traced again at each of these epochs. A run that continues with `fit(initial_epoch=...)` or
    `BackupAndRestore` first unfreezes what is due by then.

    Variables that never trained have empty moments: with the defaults of Adam their first steps
    are up to 6.6 times as long as usual, 3.2 times in the 100th (see `PartiallyFrozen`). Lower the
    learning rate at these epochs, or take `Adam(beta_2=0.9)`. Layers that were frozen by Keras's
    `trainable=False` stay frozen, with a warning.

    Args:
        epochs: dict of epoch, counted from 0 as Keras's `initial_epoch`, to what trains from its
            start on, as for `PartiallyFrozen.unfreeze`: a glob over variable paths, a layer, a
            `selection.Part`, or a list of these.

    Raises:
        ValueError: an epoch is out of its range; or, before the first step of `fit`, the model is
            not built or one of `epochs` matches nothing in it.
        TypeError: in `fit`, the model has no `unfreeze`.

    Example:

        model.fit(images, labels, epochs=9, callbacks=[Unfreeze({3: "block2/*", 6: "*"})])
    """

    def __init__(self, epochs):
        super().__init__()
        for epoch in epochs:
            check_integer("epoch", epoch, 0)
        self.epochs = dict(epochs)
        self._done = -1  # the last epoch whose changes were made in this run

    def on_train_begin(self, logs=None):
        self._done = -1
        if not hasattr(self.model, "unfreeze"):
            raise TypeError(
                "Unfreeze cannot unfreeze anything of this model. Expected one with `unfreeze`, "
                f"such as PartiallyFrozen; received {type(self.model).__name__}. Remove the "
                "callback, or derive the model from PartiallyFrozen."
            )
        if not self.model.built:
            raise ValueError(
                "Unfreeze cannot look for what it is to unfreeze. Expected a model whose variables "
                f"exist; received '{self.model.name}', which is not built. Call it on a batch "
                "before `fit`."
            )
        for what in self.epochs.values():  # a mistake is to be found before hours of training
            selection.select(self.model, what)

    def on_train_resumed(self, epoch):
        """Unfreezes what is due in an epoch that began in an earlier process; see `Resume`."""
        self._done = -1
        self.on_epoch_begin(epoch)

    def on_epoch_begin(self, epoch, logs=None):
        due = [what for first, what in self.epochs.items() if self._done < first <= epoch]
        self._done = epoch
        if due:
            self.model.unfreeze(due)


def _check_samples(callback):
    model = callback.model
    if not hasattr(model, "sample") or not hasattr(model, "image_range"):
        raise TypeError(
            f"{type(callback).__name__} cannot draw samples of this model. Expected a model with "
            f"`sample(n, seed=, labels=)` and `image_range`, such as a GAN; received "
            f"{type(model).__name__}. Remove the callback, or give the model both."
        )
