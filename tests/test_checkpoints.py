"""What a checkpoint keeps comes back as it was, and nothing half written is ever taken for one."""

import os
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from customstep import checkpoints, configuration
from tests.soak import repeatable

arrays = st.sampled_from(["float32", "float64", "int64", "uint8", "bool", "complex64"]).flatmap(
    lambda dtype: st.lists(st.integers(0, 1), max_size=4).map(lambda v: np.array(v, dtype))
)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(),
    arrays,
    arrays.filter(len).map(lambda array: array[0]),
    st.just(pathlib.Path("runs/a")),
    st.sampled_from([keras.ops.less, np.greater]),
)
keys = st.one_of(st.text(), st.integers(), st.booleans(), st.none())
plain = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
        st.sets(keys, max_size=3),
    ),
    max_leaves=10,
)


def write(directory, epoch, batch, state, keep=2):
    with checkpoints.write(directory, epoch, batch, state, keep=keep):
        pass


def shown(value):
    """`repr`, but for the order of sets, which is that of the process."""
    if isinstance(value, set):
        return f"set {sorted(map(repr, value))}"
    if isinstance(value, dict):
        return f"dict {[(key, shown(each)) for key, each in value.items()]}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} {[shown(each) for each in value]}"
    return repr(value)


@given(plain)
@repeatable
def test_plain_data_come_back_with_their_types(tmp_path_factory, state):
    directory = tmp_path_factory.mktemp("checkpoints")
    write(directory, 0, 1, state)
    again = checkpoints.read(checkpoints.newest(directory))
    assert type(again) is type(state)
    assert checkpoints.is_plain(state)
    assert shown(again) == shown(state)
    assert checkpoints.digest(state) == checkpoints.digest(again)


@pytest.mark.parametrize("value", [object(), [print], {"a": open}, np.array([object()]), b"bytes"])
def test_other_data_are_refused_and_nothing_is_written(value, tmp_path):
    assert not checkpoints.is_plain(value)
    with pytest.raises(TypeError, match="is not plain data"):
        write(tmp_path, 0, 1, value)
    assert not list(tmp_path.iterdir())


def test_order_is_that_of_epochs_and_batches(tmp_path):
    for place in [(9999, 7), (10000, 0), (2, 999999), (2, 1000000), (10000, 5)]:
        write(tmp_path, *place, {}, keep=9)
    assert [checkpoints._position(name) for name in checkpoints.names(tmp_path)] == [
        (2, 999999), (2, 1000000), (9999, 7), (10000, 0), (10000, 5),
    ]  # fmt: skip


def test_other_files_are_left_alone(tmp_path):
    for name in ("epoch_0001.png", "notes.txt", "epoch_0001_batch_x"):
        (tmp_path / name).write_text("")
    for batch in range(4):
        write(tmp_path, 0, batch, {})
    assert len(list(tmp_path.iterdir())) == 3 + 2


def test_block_that_raises_leaves_no_checkpoint(tmp_path):
    write(tmp_path, 0, 1, {"a": 1})
    with pytest.raises(RuntimeError), checkpoints.write(tmp_path, 0, 2, {}, keep=1) as folder:
        (folder / "more").write_text("")
        raise RuntimeError
    assert checkpoints.names(tmp_path) == ["epoch_0000_batch_000001"]
    assert len(list(tmp_path.iterdir())) == 1


def test_lock_removes_what_a_killed_process_had_begun(tmp_path):
    for name in (".writing-abc", ".removing-abc"):
        (tmp_path / name / "epoch_0001_batch_000000").mkdir(parents=True)
    with checkpoints.lock(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        with pytest.raises(BlockingIOError, match="Another run uses"), checkpoints.lock(tmp_path):
            pytest.fail("both have it")
    with checkpoints.lock(tmp_path):
        pass


def test_lock_ends_with_its_process_and_not_with_its_children(tmp_path):
    """A process that was forked from the holder lives on, as workers of a data set do."""
    code = (
        "import os, sys, time\n"
        "from customstep import checkpoints\n"
        "with checkpoints.lock(sys.argv[1]):\n"
        "    child = os.fork()\n"
        "    if child:\n"
        "        print(child, flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(BlockingIOError), checkpoints.lock(tmp_path):
            pytest.fail("it was free")
        holder.kill()
        holder.wait()
        with checkpoints.lock(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        holder.stdout.close()


def test_new_checkpoint_is_never_the_one_that_is_removed(tmp_path):
    """A later one is damaged, and its steps are done again."""
    write(tmp_path, 0, 5, {}, keep=2)
    write(tmp_path, 0, 50, {}, keep=2)
    (tmp_path / "epoch_0000_batch_000050" / "state.json").unlink()
    with pytest.warns(UserWarning, match="is damaged"):
        assert checkpoints.newest(tmp_path).name == "epoch_0000_batch_000005"
    write(tmp_path, 0, 20, {}, keep=1)
    assert checkpoints.names(tmp_path) == ["epoch_0000_batch_000020"]
    assert checkpoints.newest(tmp_path).name == "epoch_0000_batch_000020"


# Configurations

trees = st.recursive(
    st.one_of(st.integers(0, 2), st.text(max_size=2)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(trees, trees)
@repeatable
def test_differences_are_none_if_and_only_if_equal(a, b):
    assert configuration.differences(a, a) == []
    if a != b:
        assert configuration.differences(a, b)


def test_difference_is_named_by_its_path():
    old = {"model": {"config": {"layers": [{"units": 1}, {"units": 2}]}}, "seed": 0}
    new = {"model": {"config": {"layers": [{"units": 1}, {"units": 3}]}}, "rate": float("nan")}
    assert configuration.differences(old, new) == [
        ("model.layers.1.units", "2", "3"),
        ("seed", "0", "nothing"),
        ("rate", "nothing", "NaN"),
    ]
