"""Runs a training script in several processes that train one model in step.

Each process is a worker: it runs the whole script, and every model that the script makes is one
model of all workers, trained on the script's own batches, of which each worker takes its part
(`tf.distribute.MultiWorkerMirroredStrategy`). `launch` starts workers on this machine; where
`TF_CONFIG` is set, by hand or by a cluster's scheduler, `run` makes the process the worker it names.
"""

import contextlib
import json
import os
import pathlib
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import tensorflow as tf

from customstep import replicas

__all__ = ["launch", "run"]

_PATIENCE = 20  # seconds that workers have to end by themselves after Ctrl-C
_GRACE = 2  # seconds that they have once one is gone; most wait for it, deaf to any signal
_LAST_LINES = 15  # shown of the output of a worker that failed


def launch(script, arguments=(), workers=2, max_restarts=0):
    """Runs a script in several workers on this machine, and waits for them to end.

    The first worker, the chief, prints to the terminal and writes files. As soon as one worker
    ends other than well, all are ended, because the others would wait for it.

    Args:
        script: path of a Python file.
        arguments: list of str, its command line.
        workers: how many processes. Processor cores are shared out evenly, and so are GPUs.
        max_restarts: how often all workers are started again after one has failed. A script that
            keeps checkpoints goes on from its last one.

    Returns:
        The exit code of the script: 0, or that of the worker that failed first.

    Raises:
        ValueError: there are fewer GPUs than workers, and at least one.
    """
    environments = _environments(workers, len(tf.config.list_physical_devices("GPU")))
    for restarts_left in range(max_restarts, -1, -1):
        failed = _run_once([str(script), *arguments], environments)
        if failed is None:
            return 0
        index, code = failed
        environments = [{**one, replicas.RESTARTED: "1"} for one in environments]
        retry = "All start again." if restarts_left else "Run the same command again"
        if not restarts_left:
            retry += ": a script that keeps checkpoints goes on from its last one."
        _say(
            f"Worker {index} of {workers} {_how(code)}. Expected all workers to finish, for none "
            f"can train without the others; these were ended. {retry}"
        )
    return code if code > 0 else 1


def run(script, arguments=()):
    """Runs a script in this process, as the worker that `TF_CONFIG` names.

    Args:
        script: path of a Python file.
        arguments: list of str, its command line.

    Raises:
        ValueError: `TF_CONFIG` does not describe a cluster and a worker in it.
    """
    _check_cluster(os.environ.get("TF_CONFIG", ""))
    replicas.join()
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(pathlib.Path(script).parent))
    runpy.run_path(str(script), run_name="__main__")


def _run_once(command, environments):
    """Starts all workers once; returns the index and exit code of the one that failed, or None."""
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(len(environments))]
    with contextlib.ExitStack() as stack:
        workers, outputs = [], []
        stack.callback(_end, workers)
        for index, environment in enumerate(environments):
            task = {"type": "worker", "index": index}
            cluster = json.dumps({"cluster": {"worker": addresses}, "task": task})
            outputs.append(stack.enter_context(tempfile.TemporaryFile()) if index else None)
            workers.append(
                subprocess.Popen(
                    [sys.executable, "-m", "customstep.launching", *command],
                    env={**os.environ, **environment, "TF_CONFIG": cluster},
                    stdin=subprocess.PIPE,  # its end tells a worker that this process is gone
                    stdout=outputs[index],
                    stderr=subprocess.STDOUT if index else None,
                )
            )
        try:
            index = _first_to_fail(workers)
        except KeyboardInterrupt:
            for worker in workers:  # those of a terminal have got it already
                with contextlib.suppress(ProcessLookupError):
                    worker.send_signal(signal.SIGINT)
            _wait(workers, _PATIENCE)
            raise
        if index is None:
            return None
        code = workers[index].returncode
        _end(workers)
        if outputs[index] is not None:
            _show_end(index, outputs[index])
        return index, code


def _first_to_fail(workers):
    """Waits until all have ended well, or one has not; returns the index of that one, or None."""
    while True:
        codes = [worker.poll() for worker in workers]
        failed = [index for index, code in enumerate(codes) if code]
        if failed:
            time.sleep(1)  # the others may fail of themselves, and the chief shows how
            codes = [worker.poll() for worker in workers]
            # They may also die of it: by an abort or an error, not by a signal that is sent.
            sent = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
            failed = [index for index, code in enumerate(codes) if code]
            return min(failed, key=lambda index: -codes[index] not in sent)
        if None not in codes:
            return None
        time.sleep(0.1)


def _end(workers):
    """Ends those that still run, the hard way if need be."""
    for worker in workers:
        worker.terminate()
    _wait(workers, _GRACE)
    for worker in workers:
        worker.kill()
        worker.wait()
        worker.stdin.close()


def _wait(workers, seconds):
    limit = time.monotonic() + seconds
    for worker in workers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(max(0, limit - time.monotonic()))


def _free_ports(count):
    """Port numbers that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _environments(workers, gpus):
    """What each worker's environment has beside this process's: its part of the machine."""
    if 0 < gpus < workers:
        raise ValueError(
            f"There are too few GPUs. Expected one for each of the {workers} workers; received "
            f"{gpus}. Start {gpus} workers, or hide the GPUs by CUDA_VISIBLE_DEVICES=-1."
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    environments = []
    for index in range(workers):
        mine = {"TF_NUM_INTRAOP_THREADS": str(max(1, cores // workers))}
        if gpus:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
            share = visible.split(",")[index * gpus // workers : (index + 1) * gpus // workers]
            mine["CUDA_VISIBLE_DEVICES"] = ",".join(share)
        environments.append(mine)
    return environments


def _check_cluster(text):
    try:
        config = json.loads(text)
        task = config["task"]
        config["cluster"][task["type"]][int(task["index"])]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(
            "TF_CONFIG does not say which worker this is. Expected JSON such as "
            '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", '
            f'"index": 0}}}}; received {text!r}. Set it, or start workers here by --workers.'
        ) from error


def _how(code):
    """How a process ended that returned `code`."""
    if code > 0:
        return f"failed with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _show_end(index, output):
    output.seek(0)
    for line in output.read().decode(errors="replace").splitlines()[-_LAST_LINES:]:
        print(f"[worker {index}] {line}", file=sys.stderr)


def _say(message):
    print(f"customstep launch: {message}", file=sys.stderr, flush=True)


def _watch_the_launcher():
    """Ends this process when the one that started it is gone."""

    def watch():
        os.read(0, 1)  # nothing is ever written to it
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    _watch_the_launcher()
    run(sys.argv[1], sys.argv[2:])
