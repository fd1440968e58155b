"""Work in other processes and machines: the network is sent once, and few results are awaited."""

from __future__ import annotations

import hashlib
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, wait
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from pathlib import Path

import cloudpickle

from riba import storage

AHEAD = 32
"""Tasks at the workers at once: enough for sixteen of them, and no more in memory."""


@contextmanager
def packed(bench: object, folder: Path | None) -> Iterator[Path]:
    """``bench`` as a file in ``folder``, or in a temporary one, that is removed afterwards.

    The file is named by a hash of its content, so that no worker reads another one.
    """
    content = cloudpickle.dumps(bench)  # unlike pickle, it also takes classes defined in a notebook
    with tempfile.TemporaryDirectory() as temporary:
        path = (folder or Path(temporary)).resolve() / f".workbench-{_digest(content)}"
        with storage.whole(path) as part:
            part.write_bytes(content)
        del content
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


@lru_cache(maxsize=1)
def unpacked(path: Path) -> object:
    """What :func:`packed` stored, read once per worker; the last one stays in memory.

    Raises
    ------
    FileNotFoundError
        The worker cannot reach the file.
    ValueError
        The file is not the one that was packed.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"a worker does not reach {path}: choose as out= a folder that all machines share"
        )
    content = path.read_bytes()
    if not path.name.endswith(_digest(content)):
        raise ValueError(f"{path} is not the file that this run wrote: start it again")
    return pickle.loads(content)  # safe: the digest shows that this run wrote it


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def results(executor: Executor, work: Callable, tasks: Iterable, ahead: int = AHEAD) -> Iterator:
    """What ``work`` returns for every task, in the order in which they are done.

    Tasks are made one by one, when a worker is free: later ones are not in memory yet.

    Raises
    ------
    RuntimeError
        Some tasks failed; raised after the results of all others that can be had.
    """
    tasks, waiting, failures, submitted = iter(tasks), set(), [], 0
    try:
        while True:
            for task in islice(tasks, ahead - len(waiting)):
                submitted += 1
                try:
                    waiting.add(executor.submit(work, task))
                except RuntimeError as error:  # the pool is broken and takes no more tasks
                    failures.append(error)
                    tasks = iter(())
                    break
            if not waiting:
                break
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                if future.exception() is None:
                    yield future.result()
                else:
                    failures.append(future.exception())
    finally:
        for future in waiting:
            future.cancel()
    if failures:
        raise RuntimeError(
            f"{len(failures)} of {submitted} blocks failed, the first with: {failures[0]}; the "
            "others' results are kept: fix the cause and run it again"
        ) from failures[0]
