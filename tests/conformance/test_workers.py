"""Every template trains in two processes as it does in one, and a run that dies goes on.

The processes are those of `customstep launch`, which run `workers.py`.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.conformance import workers
from tests.descriptors import fit, state

WORK = pathlib.Path(__file__).parent / "workers.py"
CUSTOMSTEP = pathlib.Path(sys.executable).with_name("customstep")
LIMIT = 400  # seconds, many times what it takes


def launch(*arguments, check=True, **options):
    """Runs `customstep launch`; returns its exit code, and what it printed on standard error."""
    command = [CUSTOMSTEP, "launch", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, **options)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def arrays(path):
    with np.load(path) as file:
        return dict(file)


def test_two_workers_equal_one_process_and_resume(tmp_path, two_replicas):
    """Two replicas in one process draw the same noise, and equal one device (`test_replicas`)."""
    launch(WORK, "templates", tmp_path)
    for descriptor in workers.TEMPLATES:
        folder = tmp_path / descriptor.name
        with two_replicas.scope():
            model = descriptor.make()
        x, y, *_ = descriptor.batch
        history = fit(model, descriptor, validation_data=(x, y))
        logs = model.evaluate(**descriptor.data(), batch_size=10, verbose=0, return_dict=True)
        found = arrays(folder / "logs.npz")
        for name, values in {**history, **{f"evaluate_{k}": v for k, v in logs.items()}}.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)
        trained = arrays(folder / "state.npz")
        for wanted, value in zip(state(model), trained.values(), strict=True):
            np.testing.assert_allclose(
                value, wanted, rtol=1e-5, atol=1e-6, err_msg=descriptor.name
            )
        outputs = model.predict(descriptor.predicts, batch_size=2, verbose=0)
        outputs = outputs.values() if isinstance(outputs, dict) else [outputs]
        for wanted, value in zip(outputs, arrays(folder / "predictions.npz").values(), strict=True):
            np.testing.assert_allclose(value, wanted, atol=1e-5, err_msg=descriptor.name)
        resumed = arrays(folder / "resumed.npz").values()
        for wanted, value in zip(trained.values(), resumed, strict=True):
            np.testing.assert_array_equal(value, wanted, err_msg=descriptor.name)
        files = {"best.keras", "history.csv", "logs", "model.keras"}
        assert files <= {path.name for path in folder.iterdir()}
        assert len((folder / "history.csv").read_text().splitlines()) == 3


def test_a_killed_worker_ends_the_run_which_then_goes_on(tmp_path):
    for name in ("whole", "killed", "restarted"):
        (tmp_path / name).mkdir()
    launch(WORK, "killed", tmp_path / "whole")
    died = launch(WORK, "killed", tmp_path / "killed", "--kill", check=False)
    assert died.returncode == 1
    assert "Worker 1 of 2 was ended by SIGKILL." in died.stderr
    assert "goes on from its last one" in died.stderr
    assert not (tmp_path / "killed" / "state.npz").exists()
    launch(WORK, "killed", tmp_path / "killed", "--kill")  # the same command
    again = launch("--max-restarts", 1, WORK, "killed", tmp_path / "restarted", "--kill")
    assert "All start again." in again.stderr
    wanted = arrays(tmp_path / "whole" / "state.npz")
    for name in ("killed", "restarted"):
        for key, value in arrays(tmp_path / name / "state.npz").items():
            np.testing.assert_array_equal(value, wanted[key])


def test_the_chief_alone_prints_and_the_exit_code_is_the_scripts(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, customstep\n"
        "print('hello from', sys.argv[1:], customstep.replicas.is_chief(), flush=True)\n"
        "sys.exit(3)\n"
    )
    done = launch("--workers", 2, script, "--epochs", 4, check=False)
    assert done.stdout == "hello from ['--epochs', '4'] True\n"
    assert done.returncode == 3
    assert "Worker 0 of 2 failed with exit code 3." in done.stderr


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_worker_outlives_the_launcher(how, tmp_path, hears_interrupts):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, pathlib, sys, time\n"
        "(pathlib.Path(sys.argv[1]) / str(os.getpid())).touch()\n"
        "time.sleep(600)\n"
    )
    pids = tmp_path / "pids"
    pids.mkdir()
    command = [CUSTOMSTEP, "launch", str(script), str(pids)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as launcher:
        wait_until(lambda: len(list(pids.iterdir())) == 2)
        launcher.send_signal(how)
        launcher.wait(timeout=60)
    wait_until(lambda: not any(alive(int(path.name)) for path in pids.iterdir()))


def wait_until(holds):
    limit = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.1)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie has ended, and waits for a parent that is gone to ask for it.
    return "State:\tZ" not in pathlib.Path(f"/proc/{pid}/status").read_text()
