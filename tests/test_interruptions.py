"""Whatever stops a run, it goes on to the same result, and leaves no process behind.

Killed at random moments are: an evaluation with a pool of processes, maps of a folder, a training,
and the drawing of scenes. A disk is full after some bytes, or cannot be written to at all.
"""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import get_context

import numpy as np
import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal
from PIL import Image

import riba
from riba import explain, progress, storage
from riba.compare.evaluation import command, evaluate
from riba.testbed import datasets

pytestmark = pytest.mark.filterwarnings("ignore:feature statistics from")
posix = pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL, no fork")

RUNNER = """
import json, multiprocessing, os, signal, sys
from functools import partial
from pathlib import Path
import numpy as np
import torch
import riba
from riba import explain, workbench
from riba.compare.evaluation import command, evaluate
from riba.method.statistics import FeatureStatistics
from riba.testbed import datasets, networks
from tools import training


def measure(context, arguments):
    command.get_context = lambda _: multiprocessing.get_context(context)
    command.evaluate = partial(evaluate, batch=1)
    command.main(arguments)


def train(checkpoint, out):
    training.BATCH = 4
    torch.manual_seed(0)
    model = networks.scenenet(weights=None, norm=True)
    pictures = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    targets = torch.eye(10)[torch.arange(40) % 10]
    training.train(model, pictures, targets, Path(checkpoint), epochs=12)
    torch.save(model.state_dict(), out)


def draw(folder, workers):
    datasets.DATA = Path(folder)
    datasets.drawn("train", 2000, workers=workers)


DO = {"evaluate": measure, "explain": explain.main, "train": train, "draw": draw}

if __name__ == "__main__":
    datasets.DATA = home = Path(sys.argv[1])
    workbench.REFERENCE_IMAGES = 40
    FeatureStatistics.cached = partial(FeatureStatistics.cached, folder=home)
    torch.set_num_threads(1)
    riba.load()
    print("ready", flush=True)
    while line := sys.stdin.readline():
        name, arguments = json.loads(line)
        child = os.fork()
        if not child:
            os.setsid()  # so that the processes it starts are found
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have ignored it
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            DO[name](*arguments)
            os._exit(0)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)
"""
"""Does what it is told on stdin, each time in a new process; forked, as importing takes seconds.

So are most of the workers; those of the command itself are spawned.
"""


class Runner:
    """Starts what is to be stopped; see :data:`RUNNER`."""

    def __init__(self, process, folder):
        self.process, self.folder = process, folder

    def start(self, name, *arguments):
        """The number of the process that does it, which is also that of its group."""
        print(json.dumps([name, arguments]), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def status(self):
        """How it ended."""
        return int(self.process.stdout.readline())

    def stop(self, child, with_signal, when, whole_group=False):
        """Send a signal a moment after ``when`` holds; wait until no process of it is left."""
        try:
            until(when)
            time.sleep(random.Random(child).uniform(0, 0.1))
            (os.killpg if whole_group else os.kill)(child, with_signal)
            assert self.status() != 0, "it had ended before it was stopped"
            until(lambda: not alive(child))
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)


@pytest.fixture(scope="module")
def runner(home, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runner")
    (folder / "runner.py").write_text(RUNNER)
    begin = [sys.executable, "-W", "ignore", str(folder / "runner.py"), str(home)]
    there = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(begin, text=True, env=there, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        yield Runner(process, folder)
        process.stdin.close()


def until(condition, seconds=120):
    """Wait until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def alive(group):
    """Whether a process of the group is there still."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def stamped(folder, pattern):
    """When each file was written, and its content."""
    return {
        path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob(pattern)
    }


# --- killed --------------------------------------------------------------------------------------

ASK = [*("--scenes", "32", "--pairs", "0", "--metrics", "rank_accuracy")]
ASK += ["--methods", "random", "edges", "gradient"]


def measured(wb, out):
    """The table of the command, by this process alone; a scene at a time, too."""
    table, _ = command.run(wb, command.parser().parse_args([*ASK, "--out", str(out)]))
    return table


@posix
def test_an_evaluation_with_workers_is_stopped_at_any_moment(home, runner, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "evaluate", partial(evaluate, batch=1))
    wb, out = riba.load(), tmp_path / "out"
    moments = [
        ("spawn", 1, signal.SIGKILL, 0, False),  # while its worker starts
        ("spawn", 1, signal.SIGTERM, 1, False),
        ("fork", 2, signal.SIGINT, 9, False),
        ("fork", 2, signal.SIGINT, 3, True),  # Ctrl-C in a shell reaches the workers, too
        ("fork", 2, signal.SIGKILL, 5, False),
    ]
    ask, survived = [*ASK, "--out", str(out)], {}
    for context, workers, with_signal, more, whole_group in moments:
        enough = len(survived) + more
        child = runner.start("evaluate", context, [*ask, "--workers", str(workers)])

        def when(enough=enough):
            begun = list(out.glob(".workbench-*" if not enough else "part-*"))
            return len(begun) >= max(enough, 1)

        runner.stop(child, with_signal, when, whole_group)
        before, survived = survived, stamped(out, "part-*.parquet")
        assert before.items() <= survived.items()
    assert 0 < len(survived) < 3 * 32
    runner.start("evaluate", "fork", [*ask, "--workers", "2"])
    assert runner.status() == 0
    finished = stamped(out, "part-*.parquet")
    assert survived.items() <= finished.items()
    assert len(finished) == 3 * 32
    again = measured(wb, out)
    assert stamped(out, "part-*.parquet") == finished
    assert_frame_equal(again, measured(wb, tmp_path / "undisturbed"), rtol=1e-5)


@posix
@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGINT])
def test_maps_of_a_folder_are_stopped(home, runner, tmp_path, with_signal):
    photos = tmp_path / "photos"
    photos.mkdir()
    for place in range(8):
        Image.fromarray(riba.load().test.scene(place).image).save(photos / f"{place}.png")

    def ask(out):
        return [str(photos), "--out", str(out), "--method", "gradient"]

    out, other = tmp_path / "out", tmp_path / "other"
    child = runner.start("explain", ask(out))
    runner.stop(child, with_signal, lambda: any(out.glob("*.npz")))
    survived = stamped(out, "*.npz")
    assert len(survived) < 8
    for folder in (out, other):
        explain.main(ask(folder))
    assert survived.items() <= stamped(out, "*.npz").items()
    assert_frame_equal(*(pd.read_csv(folder / "maps.csv") for folder in (out, other)))
    for path in other.glob("*.npz"):
        with np.load(path) as one, np.load(out / path.name) as two:
            np.testing.assert_allclose(one["map"], two["map"], rtol=1e-5)


@posix
def test_a_training_is_stopped(home, runner, tmp_path):
    for name in ("stopped", "undisturbed"):
        checkpoint = tmp_path / f"{name}.ckpt"
        ask = ("train", str(checkpoint), str(tmp_path / f"{name}.pt"))
        seen = 0
        for with_signal in (signal.SIGKILL, signal.SIGTERM) if name == "stopped" else ():
            child = runner.start(*ask)
            runner.stop(child, with_signal, lambda: written(checkpoint) > seen)  # noqa: B023
            seen = written(checkpoint)
        runner.start(*ask)
        assert runner.status() == 0
    weights = [torch.load(tmp_path / f"{name}.pt") for name in ("stopped", "undisturbed")]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def written(path):
    """When a file was written last; 0 where it is not there."""
    return path.stat().st_mtime_ns if path.exists() else 0


@posix
@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGTERM])
def test_workers_that_draw_end_with_their_parent(runner, tmp_path, with_signal):
    began = time.monotonic()
    child = runner.start("draw", str(tmp_path), 2)
    runner.stop(child, with_signal, lambda: time.monotonic() > began + 0.5)
    assert not list(tmp_path.rglob("*.npz"))


# --- nowhere to write ----------------------------------------------------------------------------


@contextmanager
def disk(room, kind=errno.ENOSPC):
    """A disk that has room for so many bytes more; the file that exceeds them is cut short."""
    plain, left = storage.whole, [room]

    @contextmanager
    def whole(path):
        with plain(path) as part:
            yield part
            left[0] -= part.stat().st_size
            if left[0] < 0:
                os.truncate(part, max(0, part.stat().st_size + left[0]))
                raise OSError(kind, os.strerror(kind), str(path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "whole", whole)
        yield


@pytest.fixture(scope="module")
def asked(home):
    """A workbench, and four scenes for two methods."""
    wb = riba.load()
    scenes = [wb.test[place] for place in range(4)]
    return partial(evaluate, wb, ["random", "edges"], scenes, ["rank_accuracy"], batch=1)


@pytest.mark.parametrize("pool", [None, partial(ThreadPoolExecutor, 2)], ids=["alone", "threads"])
def test_an_evaluation_on_a_full_disk_keeps_what_it_has(asked, tmp_path, pool):
    expected, counts = asked(), []
    for number, room in enumerate((0, 2000, 20_000, 40_000)):
        out = tmp_path / str(number)
        with disk(room), pytest.raises((OSError, RuntimeError), match="No space left") as error:
            asked(out=out, executor=pool and pool())
        assert "\n" not in str(error.value)
        counts.append(len(list(out.glob("part-*"))))
        assert not list(out.glob(".part-*"))  # nothing half written
        kept = stamped(out, "part-*")
        assert_frame_equal(asked(out=out), expected)
        assert kept.items() <= stamped(out, "part-*").items()
    assert counts[0] == 0
    assert 0 < counts[-1] < 8


def test_a_finished_evaluation_is_read_where_nothing_can_be_written(asked, tmp_path):
    finished = asked(out=tmp_path)
    with disk(-1, errno.EROFS):
        assert_frame_equal(asked(out=tmp_path), finished)
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            assert_frame_equal(asked(out=tmp_path, executor=pool), finished)
        with pytest.raises(OSError, match="Read-only file system"):
            asked(out=tmp_path / "other")
        with pytest.raises(OSError, match="Read-only file system"):
            asked(out=tmp_path, seed=1)


def test_results_that_are_removed_meanwhile_are_missed(asked, tmp_path):
    def remove(label, done, total):
        if label == "maps" and done == total:
            next(tmp_path.glob("part-*")).unlink()

    with progress.watched(remove), pytest.raises(RuntimeError, match="something else has removed"):
        asked(out=tmp_path)
    assert_frame_equal(asked(out=tmp_path), asked())


@pytest.mark.parametrize("room", [0, 3000, 150_000, 330_000])
def test_maps_of_a_folder_on_a_full_disk(home, tmp_path, capsys, room):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for place in range(4):
        Image.fromarray(riba.load().test.scene(place).image).save(photos / f"{place}.png")
    ask = [str(photos), "--method", "edges", "--out"]
    with disk(room), pytest.raises(SystemExit):
        explain.main([*ask, str(out)])
    said = capsys.readouterr().err
    assert said.rstrip().splitlines()[-1].count("No space left on device") == 1
    assert not list(out.glob(".*"))
    kept = stamped(out, "*.npz")
    assert len(kept) < 4
    for folder in (out, tmp_path / "other"):
        explain.main([*ask, str(folder)])
    assert kept.items() <= stamped(out, "*.npz").items()
    assert_frame_equal(*(pd.read_csv(f / "maps.csv") for f in (out, tmp_path / "other")))
    for path in out.glob("*.npz"):
        with np.load(path) as one, np.load(tmp_path / "other" / path.name) as two:
            assert np.array_equal(one["map"], two["map"])


def test_scenes_that_cannot_be_stored_are_drawn_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "DATA", tmp_path)
    with disk(1000), pytest.warns(UserWarning, match="drawn scenes could not be stored") as said:
        first = datasets.drawn("test", 3)
    assert len(said) == 1
    second = datasets.drawn("test", 3)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(list(tmp_path.rglob("*"))) == 2  # the folder, and the file that was written now
