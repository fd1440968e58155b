"""Work on other processes and machines: the network travels once, and few results are awaited."""

from __future__ import annotations

import hashlib
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import cloudpickle

from riba import storage
from riba.workbench import Workbench

AHEAD = 32
"""Tasks at the workers at once: enough for sixteen of them, and no more in memory."""


# --- the network -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Packed:
    """A workbench that workers read from a file, once each.

    Attributes
    ----------
    path
        Where it lies.
    digest
        Of the file, so that nobody reads another one.
    """

    path: Path
    digest: str

    def workbench(self) -> Workbench:
        """The workbench; the last one is kept.

        Raises
        ------
        FileNotFoundError
            This worker does not reach the file.
        ValueError
            It is not the file that was packed.
        """
        return _unpacked(self.path, self.digest)


@contextmanager
def packed(wb: Workbench, folder: Path | None) -> Iterator[Packed]:
    """``wb`` as a file in ``folder``, or in a temporary one, that goes away afterwards."""
    content = cloudpickle.dumps(wb)  # unlike pickle's, a network defined in a notebook travels too
    digest = hashlib.sha256(content).hexdigest()
    with tempfile.TemporaryDirectory() as temporary:
        path = (folder or Path(temporary)).resolve() / f".workbench-{digest[:16]}"
        with storage.whole(path) as part:
            part.write_bytes(content)
        del content
        try:
            yield Packed(path, digest)
        finally:
            path.unlink(missing_ok=True)


@lru_cache(maxsize=1)
def _unpacked(path: Path, digest: str) -> Workbench:
    if not path.is_file():
        raise FileNotFoundError(
            f"a worker does not reach {path}: choose as out= a folder that all machines share"
        )
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{path} is not the file that this run wrote: start it again")
    return pickle.loads(content)  # our own, as the digest says


# --- the results -----------------------------------------------------------------------------


def results(executor: Executor, work: Callable, tasks: Iterable, ahead: int = AHEAD) -> Iterator:
    """What ``work`` gives for every task, in the order in which they are done.

    Tasks are taken one by one as places become free: those to come are not in memory yet.

    Raises
    ------
    RuntimeError
        Some tasks failed; after the results of the others, as far as they are to be had.
    """
    tasks, waiting, failures, tried = iter(tasks), set(), [], 0
    try:
        while True:
            for task in islice(tasks, ahead - len(waiting)):
                tried += 1
                try:
                    waiting.add(executor.submit(work, task))
                except RuntimeError as error:  # the pool is broken: nothing more to be had
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
            f"{len(failures)} of {tried} blocks failed, the first with: {failures[0]}; the "
            "others' results are kept: mend it and start again"
        ) from failures[0]
