"""Make `assets/fashion_mini`: 12,000 images of Fashion-MNIST as a prepared TFDS data set of 6.7 MB.

    python assets/make_fashion_mini.py                  # TFDS downloads Fashion-MNIST
    python assets/make_fashion_mini.py --idx FOLDER     # the four idx .gz files are in FOLDER

`--idx` takes the files as Debian's package `dataset-fashion-mnist` installs them (or as published),
and needs no network. The images are drawn with a fixed seed, 1,000 of each class from the official
training split and 200 of each from the official test split. Two runs write the same bytes.
"""

import argparse
import pathlib
import shutil
import struct
import tempfile

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

FOLDER = pathlib.Path(__file__).parent / "fashion_mini"
VERSION = "1.0.0"
SEED = 0  # draws the images of each class
IMAGES_PER_CLASS = {"train": 1000, "test": 200}
GZIP_TIMES = {  # the modification time in the gzip header of each published file
    "train-images-idx3-ubyte": 1504176606,
    "train-labels-idx1-ubyte": 1504176606,
    "t10k-images-idx3-ubyte": 1504176627,
    "t10k-labels-idx1-ubyte": 1504176627,
}


def main(argv=None):
    """Read Fashion-MNIST, draw the images, write the data set; returns its folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--idx", type=pathlib.Path, help="folder with the four idx .gz files")
    parser.add_argument("--out", type=pathlib.Path, default=FOLDER, help="folder to write")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        full = load_fashion_mnist(work, args.idx)
        tfds.dataset_builders.store_as_tfds_dataset(
            name="fashion_mini",
            version=VERSION,
            data_dir=work / "made",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=full.info.features["label"].names),
                }
            ),
            split_datasets={split: draw(full, split) for split in IMAGES_PER_CLASS},
            description="10,000 training and 2,000 test images of Fashion-MNIST, class-balanced.",
            homepage=full.info.homepage,
            citation=full.info.citation,
        )
        made = work / "made" / "fashion_mini" / VERSION
        for shard in made.glob("*.tfrecord-*"):
            fix_field_order(shard)
        shutil.rmtree(args.out / VERSION, ignore_errors=True)
        return shutil.copytree(made, args.out / VERSION)


def load_fashion_mnist(work, idx=None):
    """The builder of the full, official data set, prepared in the folder `work`.

    Args:
        work: folder that receives the prepared data set, about 40 MB.
        idx: folder with the four idx .gz files, or None to download them.
    """
    if idx is not None:
        restore_gzip_headers(idx, work / "downloads" / "manual")
    builder = tfds.builder("fashion_mnist", data_dir=work)
    builder.download_and_prepare()
    return builder


def restore_gzip_headers(source, target):
    """Copy the four idx .gz files with the gzip header they were published with.

    Debian compresses without file names and with times of its own; the compressed data are the
    published ones. TFDS checks the sha256 of the whole file, so the header has to be right (RFC
    1952, section 2.3).
    """
    target.mkdir(parents=True)
    for name, time in GZIP_TIMES.items():
        file = (source / f"{name}.gz").read_bytes()
        if file[:4] == b"\x1f\x8b\x08\x00":  # deflate, no optional header fields: 10 bytes
            header = struct.pack("<4sLBB", b"\x1f\x8b\x08\x08", time, 0, 3)  # with a name, on Unix
            file = header + name.encode() + b"\0" + file[10:]
        (target / f"{name}.gz").write_bytes(file)


def draw(full, split):
    """Yield `(key, example)` for the images drawn from one official split."""
    examples = list(tfds.as_numpy(full.as_dataset(split=split, shuffle_files=False)))
    labels = np.array([example["label"] for example in examples])
    count = IMAGES_PER_CLASS[split]
    random = np.random.default_rng(SEED)
    for label in np.unique(labels):
        for index in random.choice(np.flatnonzero(labels == label), count, replace=False):
            yield int(index), examples[index]


def fix_field_order(shard):
    """Write a TFRecord file again with the features of each record in a fixed order.

    Protocol buffers order the entries of a map at random in each process, so that TFDS writes
    other bytes each time.
    """
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(shard))]
    with tf.io.TFRecordWriter(str(shard)) as writer:
        for record in records:
            example = tf.train.Example.FromString(record)
            writer.write(example.SerializeToString(deterministic=True))


if __name__ == "__main__":
    print(main())
