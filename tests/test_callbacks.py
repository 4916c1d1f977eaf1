"""SampleGrid and Quality: what they leave, when, and that training does not notice them."""

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

from customstep import GAN, StepModel
from customstep.callbacks import Quality, SampleGrid
from customstep.evaluation import evaluate
from customstep.features import Features, extract
from customstep.pictures import read_metadata

IMAGES = np.random.default_rng(0).uniform(-1, 1, (8, 4, 4, 1)).astype("float32")
LABELS = np.arange(8) % 3


def tiny_gan(num_classes=None):
    """A compiled GAN of 4 x 4 images; the untrained generator of a conditional one paints class
    0, 1, 2 evenly as -1, 0, 1."""
    latents, images = keras.Input((5,)), keras.Input((4, 4, 1))
    features, pixels = latents, layers.Flatten()(images)
    inputs = (latents, images)
    if num_classes:
        label = keras.Input((), dtype="int32")
        inputs = ([latents, label], [images, label])
        level = layers.Embedding(num_classes, 1)(label)
        features = layers.Concatenate()([latents, level])
        pixels = layers.Concatenate()([pixels, layers.Embedding(num_classes, 2)(label)])
    fake = layers.Dense(16, activation=None if num_classes else "tanh")(features)
    pixels = layers.Dropout(0.5, seed=1)(pixels)
    generator = keras.Model(inputs[0], layers.Reshape((4, 4, 1))(fake), name="generator")
    discriminator = keras.Model(inputs[1], layers.Dense(1)(pixels), name="discriminator")
    if num_classes:
        kernel = np.repeat(np.eye(6)[:, 5:], 16, axis=1)
        levels = np.linspace(-1, 1, num_classes)[:, np.newaxis]
        generator.set_weights([levels, kernel, np.zeros(16)])
    gan = GAN(generator, discriminator, 5, ema_decay=0.0, num_classes=num_classes, name="tiny")
    gan.compile(
        {"discriminator": keras.optimizers.Adam(0.1), "generator": keras.optimizers.Adam(0.1)}
    )
    return gan


def train(gan, *callbacks, epochs=2, **kwargs):
    labels = None if gan.num_classes is None else LABELS
    return gan.fit(
        IMAGES,
        labels,
        batch_size=4,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
        **kwargs,
    )


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


def frame_count(path):
    with Image.open(path) as image:
        return image.n_frames


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image)


class DieAt(keras.callbacks.Callback):
    def __init__(self, epoch, error):
        super().__init__()
        self.epoch, self.error = epoch, error

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise self.error


@pytest.fixture(scope="module")
def gan():
    """For the tests that do not mind who trained it before."""
    return tiny_gan()


def test_a_run_leaves_one_sheet_an_epoch_and_their_animation(tmp_path, gan):
    train(gan, SampleGrid(tmp_path / "new" / "samples", rows=2, cols=3))
    folder = tmp_path / "new" / "samples"
    assert files_of(folder) == [
        "epoch_0000.png",
        "epoch_0001.png",
        "epoch_0002.png",
        "training.gif",
    ]
    assert frame_count(folder / "training.gif") == 3
    # 2 rows and 3 columns of 4 x 4 images at scale 2, with 2 pixels around and between
    assert pixels_of(folder / "epoch_0000.png").shape == (2 * 10 + 2, 3 * 10 + 2)


def test_sheets_say_what_they_show(tmp_path):
    train(tiny_gan(), SampleGrid(tmp_path, seed=7))
    for epoch in range(3):  # of two batches each
        metadata = read_metadata(tmp_path / f"epoch_{epoch:04d}.png")
        del metadata["Software"]
        expected = {"model": "tiny", "epoch": str(epoch), "step": str(2 * epoch), "seed": "7"}
        assert metadata == expected


def test_sheets_show_the_same_latents_at_every_epoch(tmp_path, gan):
    for optimizer in gan.optimizers.values():
        optimizer.learning_rate = 0.0
    train(gan, SampleGrid(tmp_path))
    for optimizer in gan.optimizers.values():
        optimizer.learning_rate = 0.1
    first, *others = (pixels_of(path) for path in sorted(tmp_path.glob("*.png")))
    assert first.std() > 0
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_training_does_not_notice_the_callback(tmp_path):
    states = []
    for callbacks in ([], [SampleGrid(tmp_path)]):
        keras.utils.set_random_seed(0)
        gan = tiny_gan()
        history = train(gan, *callbacks).history
        optimizers = gan.optimizers.values()
        variables = gan.variables + [v for one in optimizers for v in one.variables]
        states.append(([np.asarray(v.value) for v in variables], history))
    (plain, plain_history), (watched, watched_history) = states
    assert plain_history == watched_history
    assert len(plain) == len(watched)
    for one, other in zip(plain, watched):
        np.testing.assert_array_equal(one, other)


def test_every_skips_epochs_but_never_the_last(tmp_path, gan):
    train(gan, SampleGrid(tmp_path, every=2), epochs=3)
    names = ["epoch_0000.png", "epoch_0002.png", "epoch_0003.png", "training.gif"]
    assert files_of(tmp_path) == names


def test_a_continued_run_keeps_the_earlier_frames(tmp_path, gan):
    train(gan, SampleGrid(tmp_path), epochs=1)
    train(gan, SampleGrid(tmp_path), epochs=3, initial_epoch=1)
    assert frame_count(tmp_path / "training.gif") == 4


def test_sheets_of_another_run_stay_out_of_the_animation(tmp_path, gan):
    train(gan, SampleGrid(tmp_path), epochs=3)
    train(gan, SampleGrid(tmp_path), epochs=1)
    assert (tmp_path / "epoch_0003.png").exists()
    assert frame_count(tmp_path / "training.gif") == 2


def test_sheets_of_another_size_stay_out_of_the_animation(tmp_path, gan):
    train(gan, SampleGrid(tmp_path, cols=2), epochs=1)
    train(gan, SampleGrid(tmp_path, cols=3), epochs=2, initial_epoch=1)
    assert frame_count(tmp_path / "training.gif") == 2


@pytest.mark.parametrize("rows, classes", [(None, [0, 1, 2]), (2, [0, 1]), (4, [0, 1, 2, 0])])
def test_row_r_of_a_conditional_model_shows_class_r(tmp_path, rows, classes):
    train(tiny_gan(num_classes=3), SampleGrid(tmp_path, rows=rows, cols=2, scale=1), epochs=1)
    sheet = pixels_of(tmp_path / "epoch_0000.png")
    assert len(sheet) == 6 * len(classes) + 2
    for row, label in enumerate(classes):
        tiles = sheet[2 + 6 * row : 6 + 6 * row, [2, 3, 4, 5, 8, 9, 10, 11]]
        # -1, 0 and 1 as bytes; 127.5 is rounded to even
        np.testing.assert_array_equal(tiles, [0, 128, 255][label])


@pytest.mark.parametrize("error", [RuntimeError("out of luck"), KeyboardInterrupt()])
def test_a_dying_run_leaves_a_last_sheet_and_the_animation(tmp_path, gan, error):
    with pytest.raises(type(error)) as caught:
        train(gan, SampleGrid(tmp_path), DieAt(1, error), epochs=3)
    assert caught.value is error
    names = ["epoch_0000.png", "epoch_0001.png", "interrupted.png", "training.gif"]
    assert files_of(tmp_path) == names
    assert frame_count(tmp_path / "training.gif") == 2
    assert read_metadata(tmp_path / "interrupted.png")["epoch"] == "1"


def test_a_failure_to_write_does_not_hide_why_training_died(tmp_path, monkeypatch):
    gan = tiny_gan()
    error = RuntimeError("out of luck")

    class Sabotage(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            monkeypatch.setattr(gan, "latents", None)  # so that `sample` raises
            raise error

    with pytest.raises(RuntimeError) as caught:
        train(gan, SampleGrid(tmp_path), Sabotage())
    assert caught.value is error
    [note] = error.__notes__
    assert "interrupted.png' was not written: TypeError" in note
    assert files_of(tmp_path) == ["epoch_0000.png", "epoch_0001.png", "training.gif"]


def test_a_run_that_dies_before_its_first_epoch_leaves_nothing(tmp_path, gan):
    with pytest.raises(ValueError):
        gan.fit(IMAGES, LABELS[:3], callbacks=[SampleGrid(tmp_path)])
    assert files_of(tmp_path) == []


def test_model_without_samples_is_refused(tmp_path):
    model = StepModel(inputs=(x := keras.Input((2,))), outputs=layers.Dense(1)(x))
    model.compile("sgd", "mse")
    with pytest.raises(TypeError, match="Expected a model with `sample.*received StepMod.*Remove"):
        model.fit(np.zeros((2, 2)), np.zeros((2, 1)), verbose=0, callbacks=[SampleGrid(tmp_path)])


@pytest.mark.parametrize(
    "argument", [{"rows": 0}, {"cols": 0}, {"every": 0}, {"seed": -1}, {"scale": 1.5}]
)
def test_number_out_of_range_is_refused(tmp_path, argument):
    (name,) = argument
    with pytest.raises(ValueError, match=f"`{name}` is out of its range. Expected.*received"):
        SampleGrid(tmp_path, **argument)


# Quality

ignore_few = pytest.mark.filterwarnings("ignore:There are few images")
REAL = np.random.default_rng(1).integers(0, 256, (40, 4, 4, 1)).astype("uint8")


@pytest.fixture
def pixels():
    """A network whose features are the pixels of an image, and whose classes are two."""
    images = keras.Input((4, 4, 1))
    flat = layers.Flatten()(images)
    return keras.Model(images, [flat, layers.Dense(2)(flat)])


def test_quality_logs_what_evaluate_measures(pixels):
    gan = tiny_gan()
    with pytest.warns(UserWarning, match="Expected at least 160, .*; received 30") as caught:
        history = train(gan, Quality(REAL, network=pixels, samples=30, seed=3)).history
    assert len(caught) == 1  # not at every epoch
    generated = extract(gan.sample(30, seed=3), pixels, image_range=(-1, 1))
    with pytest.warns(UserWarning, match="few images"):
        expected = evaluate(generated, extract(REAL, pixels)).logs()
    assert {name: values[-1] for name, values in history.items() if name in expected} == expected
    assert len(expected) == 8


@ignore_few
def test_quality_does_not_touch_training(pixels):
    def weights(*callbacks):
        keras.utils.set_random_seed(0)
        gan = tiny_gan()
        train(gan, *callbacks)
        return gan.get_weights()

    for a, b in zip(weights(), weights(Quality(REAL, network=pixels, samples=10))):
        np.testing.assert_array_equal(a, b)


@ignore_few
def test_quality_can_be_monitored_and_repeats_itself_between(pixels, tmp_path):
    quality = Quality(REAL, network=pixels, samples=20, every=2)
    best = keras.callbacks.ModelCheckpoint(
        tmp_path / "{epoch}.keras", "frechet_distance", mode="min", save_best_only=True
    )
    patient = keras.callbacks.EarlyStopping("recall", mode="max", patience=9)
    values = train(tiny_gan(), quality, best, patient, epochs=5).history["frechet_distance"]
    assert len(values) == 5
    assert values[1] == values[2] and values[3] == values[4] != values[1]
    assert files_of(tmp_path)


@ignore_few
def test_images_that_are_not_finite_have_no_quality(pixels):
    gan = tiny_gan()
    gan.ema_generator.set_weights([w * np.nan for w in gan.ema_generator.get_weights()])
    values = gan.fit(
        IMAGES, epochs=1, verbose=0, callbacks=[Quality(REAL, network=pixels, samples=10)]
    ).history
    assert np.isnan(values["frechet_distance"]).all() and np.isnan(values["smallest_class"]).all()


def test_mistakes_of_quality_are_told_before_training(pixels):
    for bad in (dict(samples=5), dict(every=0), dict(seed=-1)):
        with pytest.raises(ValueError, match="Expected a whole number"):
            Quality(REAL, network=pixels, **bad)
    with pytest.raises(ValueError, match="network cannot take these images"):
        Quality(REAL)
    for quality, words in (
        (Quality(REAL[:4], network=pixels), "too few images for their neighbours"),
        (Quality(Features(np.eye(9)), network=pixels), "received 9 and 16"),
        (Quality(extract(REAL, pixels)), "network cannot take these images"),
    ):
        gan = tiny_gan()
        with pytest.raises(ValueError, match=words):
            train(gan, quality)
        assert gan.steps == 0
    model = StepModel(inputs=(inputs := keras.Input((2,))), outputs=layers.Dense(1)(inputs))
    model.compile("sgd", "mse")
    with pytest.raises(TypeError, match="Quality cannot draw samples"):
        model.fit(np.zeros((4, 2)), np.zeros((4, 1)), callbacks=[Quality(Features(np.eye(3)))])
