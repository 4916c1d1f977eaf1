"""Images: what is read, in which order, in which range, and what every error says."""

import inspect
import pathlib
import time

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from customstep import datasets
from customstep.datasets import ImageSet, load_images, read_images


class StripedTiny(tfds.core.GeneratorBasedBuilder):
    """Four images without a download: 2 x 4, black beside white, of two classes."""

    VERSION = tfds.core.Version("1.0.0")
    FEATURES = {
        "image": tfds.features.Image(shape=(2, 4, 1)),
        "label": tfds.features.ClassLabel(names=["left", "right"]),
    }

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(self.FEATURES)
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for key in range(4):
            image = np.zeros((2, 4, 1), np.uint8)
            image[:, 2 * (key % 2) :][:, :2] = 255
            yield key, {"image": image, "label": key % 2}


class UnlabelledTiny(StripedTiny):
    """The same images, their size left open, without labels."""

    FEATURES = {"image": tfds.features.Image(shape=(None, None, 1))}

    def _generate_examples(self):
        for key, example in super()._generate_examples():
            yield key, {"image": example["image"]}


class TextTiny(StripedTiny):
    """No image at all."""

    FEATURES = {"label": tfds.features.ClassLabel(names=["left", "right"])}

    def _generate_examples(self):
        for key, example in super()._generate_examples():
            yield key, {"label": example["label"]}


@pytest.fixture(scope="module")
def mini_test():
    return read_images("fashion_mini", "test")


@pytest.fixture
def numbers():
    """Ten 1 x 1 images; the label of each is its value."""
    values = np.arange(10)
    images = values.astype(np.uint8).reshape(10, 1, 1, 1)
    return ImageSet(images, values.astype(np.int32), tuple(map(str, values)))


@pytest.fixture
def no_network(monkeypatch):
    """A proxy that refuses every connection."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def save(path, value, size=(4, 4), mode="L"):
    """Write an image of one colour; `size` is (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new(mode, size[::-1], value).save(path)
    return path


def orders(batches, epochs):
    """The labels of each epoch, in order."""
    return [np.concatenate([labels for _, labels in batches]).tolist() for _ in range(epochs)]


# The embedded data set.


def test_embedded_test_split_holds_200_gray_images_of_each_class(mini_test):
    assert mini_test.images.shape == (2000, 28, 28, 1)
    assert mini_test.images.dtype == np.uint8 and mini_test.labels.dtype == np.int32
    assert np.bincount(mini_test.labels).tolist() == [200] * 10
    assert mini_test.class_names[0] == "T-shirt/top" and mini_test.class_names[9] == "Ankle boot"


def test_embedded_training_split_holds_1000_images_of_each_class():
    assert np.bincount(read_images().labels).tolist() == [1000] * 10


def test_embedded_images_have_the_brightness_of_the_official_ones(mini_test):
    # The mean of all 10,000 official test images is 0.2868, known from the literature; four
    # standard errors of a mean over 2,000 images are below 0.02.
    assert mini_test.images.mean() / 255 == pytest.approx(0.2868, abs=0.02)


def test_embedded_data_set_carries_its_licence_and_no_machine_path():
    folder = datasets.MINI.parent
    assert "Zalando" in (folder / "LICENSE").read_text()
    described = [path.read_text() for path in folder.rglob("*") if path.suffix in (".json", ".md")]
    assert len(described) == 3
    assert not any(root in text for text in described for root in ("/tmp", "/home", "/root"))


def test_default_batches_are_what_a_gan_trains_on():
    batches = load_images(batch_size=32)
    images, labels = next(iter(batches))
    assert images.shape == (32, 28, 28, 1) and images.dtype == tf.float32
    assert labels.shape == (32,) and labels.dtype == tf.int32
    assert float(tf.reduce_min(images)) == -1.0 and float(tf.reduce_max(images)) == 1.0
    assert int(batches.cardinality()) == 10_000 // 32


def test_part_of_a_split_is_read(mini_test):
    part = read_images("fashion_mini", "test[:10]")
    np.testing.assert_array_equal(part.images, mini_test.images[:10])


# Batches.


@pytest.mark.parametrize("low, high", [(-1, 1), (0, 1), (0, 255), (-0.3, 0.7), (1e-3, 3.3)])
def test_black_is_low_and_white_is_high_exactly(low, high):
    pixels = np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1)
    image_set = ImageSet(pixels, np.zeros(3, np.int32), ("any",))
    ((images, _),) = image_set.batches(3, image_range=(low, high), shuffle=False)
    black, fifth, white = images.numpy().ravel()
    assert (black, white) == (np.float32(low), np.float32(high))
    assert fifth == pytest.approx(low + (high - low) / 5, rel=1e-5)


def test_each_epoch_has_an_order_of_its_own(numbers):
    first, second = orders(numbers.batches(5), 2)
    assert first != second and sorted(first) == sorted(second) == list(range(10))


def test_equal_seeds_give_equal_orders_epoch_by_epoch(numbers):
    assert orders(numbers.batches(5, seed=7), 3) == orders(numbers.batches(5, seed=7), 3)
    assert orders(numbers.batches(5, seed=7), 3) != orders(numbers.batches(5, seed=8), 3)


def test_images_keep_their_labels_when_shuffled(numbers):
    for images, labels in numbers.batches(5, image_range=(0, 255)):
        np.testing.assert_allclose(images.numpy().ravel(), labels, rtol=1e-6)


def test_shuffled_batches_are_all_whole(numbers):
    batches = numbers.batches(4)
    assert [len(labels) for _, labels in batches] == [4, 4]
    assert int(batches.cardinality()) == 2
    assert batches.element_spec[0].shape == (4, 1, 1, 1)


def test_ordered_batches_hold_every_image_in_order(numbers):
    batches = numbers.batches(4, shuffle=False)
    found = [labels.numpy().tolist() for _, labels in batches]
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert int(batches.cardinality()) == 3


def test_ordered_batch_may_exceed_the_set(numbers):
    assert [len(labels) for _, labels in numbers.batches(64, shuffle=False)] == [10]


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "8", None, 11])
def test_bad_batch_size_is_refused(numbers, batch_size):
    with pytest.raises(ValueError, match="Expected a whole number from 1 to 10; received"):
        numbers.batches(batch_size)


@pytest.mark.parametrize("image_range", [(1, -1), (0, 0), (0, np.inf), (np.nan, 1), 1, "01"])
def test_bad_image_range_is_refused(numbers, image_range):
    with pytest.raises(ValueError, match="Expected two finite numbers, low < high; received"):
        numbers.batches(2, image_range=image_range)


# Folders of images.


def test_flat_folder_is_one_class_in_the_order_of_file_names(tmp_path):
    for name, value in (("b.png", 2), ("a.bmp", 1), ("c.gif", 3), ("d.webp", 0)):
        save(tmp_path / "photos" / name, value, mode="RGB" if "webp" in name else "L")
    images, labels, class_names = read_images(tmp_path / "photos")
    assert images.shape == (4, 4, 4, 3) and images[:3, 0, 0, 0].tolist() == [1, 2, 3]
    assert labels.tolist() == [0, 0, 0, 0] and class_names == ("photos",)


def test_sub_folders_are_classes_sorted_by_name(tmp_path):
    for name in ("dog/1.png", "cat/1.JPG", "cat/2.jpeg"):
        save(tmp_path / name, 9)
    images, labels, class_names = read_images(str(tmp_path))
    assert images.shape == (3, 4, 4, 1)
    assert labels.tolist() == [0, 0, 1] and labels.dtype == np.int32
    assert class_names == ("cat", "dog")


def test_folder_batches_train(tmp_path):
    for index in range(6):
        save(tmp_path / f"{index}.png", (255, 0, 0), mode="RGB")
    images, labels = next(iter(load_images(tmp_path, batch_size=4)))
    assert images.shape == (4, 4, 4, 3)
    np.testing.assert_array_equal(images[0, 0, 0], [1, -1, -1])


def test_gray_image_among_coloured_ones_gets_three_equal_channels(tmp_path):
    save(tmp_path / "a.png", 7)
    save(tmp_path / "b.png", (1, 2, 3), mode="RGB")
    assert read_images(tmp_path).images[:, 0, 0].tolist() == [[7, 7, 7], [1, 2, 3]]


def test_gray_images_with_transparency_keep_one_channel(tmp_path):
    save(tmp_path / "a.png", (7, 128), mode="LA")
    assert read_images(tmp_path).images.shape == (1, 4, 4, 1)


def test_image_is_turned_upright_by_its_exif_tag(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    PIL.Image.new("L", (6, 2)).save(tmp_path / "a.jpg", exif=exif)
    assert read_images(tmp_path).images.shape == (1, 6, 2, 1)


def test_other_and_hidden_files_are_ignored(tmp_path):
    save(tmp_path / "a.png", 1)
    save(tmp_path / ".thumbnails" / "a.png", 1)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._a.png").write_text("not an image either")
    assert len(read_images(tmp_path).images) == 1


def test_images_of_several_sizes_need_a_size(tmp_path):
    save(tmp_path / "a.png", 10, size=(4, 8))
    save(tmp_path / "b.png", 20, size=(6, 6))
    with pytest.raises(ValueError, match=r"differ in size.*Pass image_size=\(height, width\)"):
        read_images(tmp_path)
    images = read_images(tmp_path, image_size=(3, 3)).images
    assert images.shape == (2, 3, 3, 1) and images[:, 0, 0, 0].tolist() == [10, 20]


def test_crop_is_central_and_resizing_averages(tmp_path):
    row = np.array([9, 9, 0, 0, 100, 100, 9, 9], np.uint8)
    PIL.Image.fromarray(np.tile(row, (4, 1))).save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        read_images(tmp_path, image_size=(4, 4)).images[0, 0, :, 0], [0, 0, 100, 100]
    )
    # Two wide: the triangle filter weighs 3, 3, 1 of the four columns: 100/7 and 600/7.
    np.testing.assert_array_equal(
        read_images(tmp_path, image_size=(2, 2)).images[0, 0, :, 0], [14, 86]
    )


def test_size_the_images_have_changes_nothing(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_images(tmp_path, image_size=(5, 7)).images[0], pixels)


def test_damaged_file_is_named(tmp_path):
    whole = save(tmp_path / "whole.png", 1, size=(64, 64))
    (tmp_path / "half.png").write_bytes(whole.read_bytes()[:60])
    with pytest.raises(ValueError, match="Cannot read the image '.*half.png'"):
        read_images(tmp_path)


def test_sixteen_bit_file_is_named(tmp_path):
    PIL.Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="deep.png.*8 bits a channel; received one that fails"):
        read_images(tmp_path)


def test_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a set of images.*received neither"):
        read_images(tmp_path)


def test_folder_with_images_and_classes_is_refused(tmp_path):
    save(tmp_path / "a.png", 1)
    save(tmp_path / "cat" / "a.png", 1)
    with pytest.raises(ValueError, match="is not a set of images.*received both"):
        read_images(tmp_path)


def test_folder_has_only_a_training_split(tmp_path):
    save(tmp_path / "a.png", 1)
    with pytest.raises(ValueError, match=r"Expected one of \['train'\].*received 'test'"):
        read_images(tmp_path, "test")


@pytest.mark.parametrize("image_size", [(0, 4), (4,), 4, (4.0, 4.0), "44"])
def test_bad_image_size_is_refused(image_size):
    with pytest.raises(ValueError, match="Expected two positive whole numbers"):
        read_images(image_size=image_size)


# TFDS data sets, by name.


def test_named_data_set_is_prepared_once_and_read_without_network(tmp_path, no_network):
    for _ in range(2):
        images, labels, class_names = read_images("striped_tiny:1.0.0", data_dir=tmp_path)
        assert images.shape == (4, 2, 4, 1) and class_names == ("left", "right")
        for image, label in zip(images, labels):
            assert image[0, :, 0].tolist() == [[255, 255, 0, 0], [0, 0, 255, 255]][label]


def test_prepared_folder_is_read_by_its_path(tmp_path):
    named = read_images("striped_tiny", data_dir=tmp_path)
    by_path = read_images(tmp_path / "striped_tiny" / "1.0.0")
    np.testing.assert_array_equal(by_path.images, named.images)
    assert by_path.class_names == named.class_names


def test_known_name_is_the_data_set_even_beside_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "striped_tiny" / "a.png", 1)
    assert len(read_images("striped_tiny", data_dir=tmp_path / "data").images) == 4
    assert len(read_images("./striped_tiny/").images) == 1
    assert len(read_images(pathlib.Path("striped_tiny")).images) == 1


def test_data_set_of_open_sizes_needs_a_size_and_without_labels_is_one_class(tmp_path):
    with pytest.raises(ValueError, match="'unlabelled_tiny' differ in size"):
        read_images("unlabelled_tiny", data_dir=tmp_path)
    images, labels, class_names = read_images(
        "unlabelled_tiny", image_size=(2, 2), data_dir=tmp_path
    )
    assert sorted(images[:, 0, :, 0].tolist()) == [[0, 255], [0, 255], [255, 0], [255, 0]]
    assert labels.tolist() == [0] * 4 and class_names == ("unlabelled_tiny",)


def test_data_set_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'text_tiny' has no images.*features \['label'\]"):
        read_images("text_tiny", data_dir=tmp_path)


@pytest.mark.parametrize("split", ["validation", "train[:0]", "train[", None])
def test_missing_or_empty_split_is_refused_with_the_known_ones(split):
    with pytest.raises(ValueError, match=r"Expected one of \['train', 'test'\]"):
        read_images("fashion_mini", split)


def test_unknown_name_suggests_near_ones():
    with pytest.raises(ValueError, match="no data set 'cifar11'.*Did you mean .*'cifar10'"):
        load_images("cifar11", batch_size=8)


def test_unknown_path_is_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no data set .*nowhere"):
        read_images(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["cifar10:9.9.9", "cifar10_corrupted/fog_9"])
def test_unknown_version_or_configuration_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=f"TFDS cannot open the data set '{name}'"):
        read_images(name, data_dir=tmp_path)


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10:3.0.2"])
def test_missing_network_is_told_in_seconds_with_every_remedy(name, tmp_path, no_network):
    start = time.monotonic()
    with pytest.raises(ConnectionError) as caught:
        load_images(name, batch_size=8, data_dir=tmp_path)
    assert time.monotonic() - start < 10
    message = str(caught.value)
    assert str(tmp_path / "downloads" / "manual") in message
    assert str(tmp_path / name.split(":")[0]) in message
    assert "source='fashion_mini'" in message
    assert {"fashion_mnist": "t10k-images-idx3-ubyte.gz"}.get(name, "cifar-10-binary") in message


# The module.


def test_every_public_name_is_exported():
    public = {
        name
        for name, value in vars(datasets).items()
        if inspect.getmodule(value) is datasets and not name.startswith("_")
    }
    assert set(datasets.__all__) == public
