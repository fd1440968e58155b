"""One table whatever the way to it: batches, stops, kills and executors; and what it says."""

import dataclasses
import functools
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import cloudpickle
import numpy as np
import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal
from scipy.stats import wilcoxon

import riba
from riba.compare import evaluation, metrics
from riba.compare.evaluation import command as command_line
from riba.compare.evaluation import evaluate, workers
from riba.storage import DATA
from riba.testbed import datasets
from tools import evaluation as tool

pytestmark = pytest.mark.filterwarnings("ignore:feature statistics from")

COLUMNS = [
    *(
        "sample",
        "group",
        "label",
        "digest",
        "area",
        "method",
        "seed",
        "version",
        "metric",
        "mask",
        "value",
    ),
]
SUMMARY = ["method", "metric", "mask", "mean", "low", "high", "n"]
COMPARISON = [
    *("method", "against", "metric", "mask", "difference", "low", "high", "n", "p_holm"),
]
METHODS = ["gradient", "grad-cam", "iba", "random", "edges", "oracle"]
MEASURES = ["mass_accuracy", "deletion", "allocation_area", "allocation@0.1"]
CHEAP = ["edges", "oracle"]


@pytest.fixture(scope="module")
def wb(home):
    return riba.load()


@pytest.fixture(scope="module")
def samples(wb):
    return [wb.test[i] for i in range(6)]


@pytest.fixture(scope="module")
def pairs():
    sides = [datasets.Scenes("test", 3, others=1, target=target) for target in (0, 1)]
    return [side[i] for i in range(2) for side in sides]


@pytest.fixture(scope="module")
def table(wb, samples):
    return evaluate(wb, METHODS, samples[:3], MEASURES, batch=3)


def same_versions(patch):
    """Let a method whose function a test exchanges count as the same version."""
    patch.setattr(riba.Method, "version", property(lambda method: "0" * 12))


@pytest.fixture
def calls(monkeypatch):
    """(method, images) of every call of a cheap method."""
    made = []
    same_versions(monkeypatch)

    def counted(name, method):
        @functools.wraps(method.function)  # for its settings
        def run(query, **settings):
            made.append((name, len(query.images)))
            return method.function(query, **settings)

        return dataclasses.replace(method, function=run)

    for name in (*CHEAP, "random", "centre"):
        monkeypatch.setitem(riba.METHODS, name, counted(name, riba.METHODS[name]))
    return made


def parts(folder):
    return {path.name: path.read_bytes() for path in folder.glob("part-*.parquet")}


# --- the table -----------------------------------------------------------------------------------


def test_a_row_per_sample_method_metric_and_mask_in_the_order_of_the_arguments(table, samples):
    assert list(table.columns) == COLUMNS
    expected = [
        (method, sample.name, metric, mask)
        for method, sample, metric in itertools.product(METHODS, samples[:3], MEASURES)
        for mask in (["none"] if metric == "deletion" else ["banded", "strict"])
    ]
    keys = ["method", "sample", "metric", "mask"]
    assert list(table[keys].itertuples(index=False, name=None)) == expected
    assert list(table.index) == list(range(len(expected)))


def test_rows_tell_their_sample(table, samples):
    assert set(table["seed"]) == {0}
    assert table["digest"].nunique() == 3
    for sample in samples[:3]:
        own = table[table["sample"] == sample.name]
        assert set(own["label"]) == {sample.label}
        assert own["digest"].nunique() == 1
        np.testing.assert_allclose(own["area"], sample.mask.double().mean().item())


@pytest.mark.parametrize("method", METHODS)
def test_values_are_those_of_method_and_metric_called_directly(wb, table, samples, method):
    images, labels, masks = datasets.stack(samples[:3])
    maps = riba.METHODS[method](wb, images, labels, masks=masks, seed=0)
    band = metrics.border_band(masks)
    expected = {("deletion", "none"): metrics.deletion(wb.model, images, labels, maps)}
    for mask, void in (("strict", None), ("banded", band)):
        expected |= {
            ("mass_accuracy", mask): metrics.mass_accuracy(maps, masks, void),
            ("allocation_area", mask): metrics.allocation_area(maps, masks, void),
            ("allocation@0.1", mask): metrics.allocation_curve(maps, masks, [0.1], void)[:, 0],
        }
    of_method = table[table["method"] == method].set_index(["metric", "mask"])
    for key, values in expected.items():
        np.testing.assert_allclose(of_method.loc[[key], "value"], values, rtol=1e-6, err_msg=key)


def test_the_oracle_scores_one(wb, samples, pairs):
    unboxed = [m for m in metrics.LOCALISATION if m != "bounding_box_ratio"]
    alone = evaluate(wb, ["oracle"], samples, unboxed)
    assert alone["value"].to_numpy() == pytest.approx(1)
    contrast = evaluate(wb, ["oracle", "centre"], pairs, [evaluation.CONTRAST])
    values = contrast.set_index("method")["value"]
    assert values["oracle"].to_numpy() == pytest.approx(1)
    # one map for both classes: what one object wins the other loses
    own = values["centre"].to_numpy().reshape(-1, 2, 2)
    np.testing.assert_allclose(own[:, 0] + own[:, 1], 1)


def test_neither_batch_nor_order_changes_a_value(wb, table, samples):
    shuffled = [samples[i] for i in (2, 0, 1)]
    other = evaluate(wb, METHODS[::-1], shuffled, MEASURES[::-1], batch=2)
    keys = [name for name in COLUMNS if name != "value"]
    one, two = (t.sort_values(keys, ignore_index=True) for t in (table, other))
    assert_frame_equal(one, two, rtol=1e-3, atol=1e-4)
    controls = one["method"].isin(["random", "edges", "oracle"]) & (one["metric"] != "deletion")
    assert_frame_equal(one[controls], two[controls], rtol=1e-12)


def test_a_pair_is_judged_alike_beside_single_objects(wb, samples, pairs):
    mixed = [samples[0], pairs[0], pairs[1]]
    together = evaluate(wb, CHEAP, mixed, batch=3)
    apart = evaluate(wb, CHEAP, mixed, batch=1)
    assert_frame_equal(together, apart)


def test_what_does_not_apply_is_nan(wb, samples):
    thin = torch.zeros_like(samples[0].mask)
    thin[60:62, 60:62] = True
    wide = torch.zeros_like(thin)
    wide[4:-4, 4:-4] = True
    odd = [dataclasses.replace(samples[0], mask=mask, name="") for mask in (thin, wide)]
    odd.append(samples[1])
    values = evaluate(wb, ["centre"], odd, ["rank_accuracy", "bounding_box_ratio"])
    values = values.pivot_table("value", ["metric", "mask"], "digest", "mean", sort=False)
    values.columns = ["thin", "wide", "usual"]
    assert values["usual"].notna().all()
    assert values["thin"].isna().tolist() == [True, False, True, False]
    assert values["wide"].isna().tolist() == [False, False, True, True]


def test_seeds_change_what_is_random_and_nothing_else(wb, samples):
    methods, some = ["random", "edges"], samples[:2]
    zero, one = (evaluate(wb, methods, some, ["mass_accuracy"], seed=seed) for seed in (0, 1))
    assert set(one["seed"]) == {1}
    changed, noise = zero["value"] != one["value"], zero["method"] == "random"
    assert changed[noise].all()
    assert not changed[~noise].any()


# --- stopped and started again -------------------------------------------------------------------


def test_a_second_run_computes_nothing(wb, samples, tmp_path, calls):
    first = evaluate(wb, CHEAP, samples, out=tmp_path, batch=4)
    assert sorted(calls) == [("edges", 2), ("edges", 4), ("oracle", 2), ("oracle", 4)]
    before = parts(tmp_path)
    assert len(before) == 4
    calls.clear()
    again = evaluate(wb, CHEAP, samples, out=str(tmp_path), batch=2)
    assert calls == []
    assert parts(tmp_path) == before
    assert_frame_equal(first, again)
    assert_frame_equal(again, evaluate(wb, CHEAP, samples))


def test_only_what_is_missing_is_computed(wb, samples, tmp_path, calls):
    def made(methods, count, measures):
        calls.clear()
        given = evaluate(wb, methods, samples[:count], measures, out=tmp_path)
        missing = list(calls)
        assert_frame_equal(given, evaluate(wb, methods, samples[:count], measures))
        return missing

    assert made(["edges"], 3, ["rank_accuracy"]) == [("edges", 3)]
    assert made(["random", "edges"], 3, ["rank_accuracy"]) == [("random", 3)]
    assert made(["random", "edges"], 5, ["rank_accuracy"]) == [("random", 2), ("edges", 2)]
    before = parts(tmp_path)
    assert made(["edges"], 4, ["mass_accuracy", "rank_accuracy"]) == [("edges", 4)]
    (added,) = parts(tmp_path).keys() - before.keys()
    assert set(pd.read_parquet(tmp_path / added)["metric"]) == {"mass_accuracy"}
    assert made(["edges"], 2, ["mass_accuracy"]) == []


def test_another_seed_is_measured_apart(wb, samples, tmp_path, calls):
    zero = evaluate(wb, ["random"], samples[:2], out=tmp_path)
    one = evaluate(wb, ["random"], samples[:2], out=tmp_path, seed=1)
    assert calls == [("random", 2)] * 2
    assert_frame_equal(zero, evaluate(wb, ["random"], samples[:2], out=tmp_path))
    assert_frame_equal(one, evaluate(wb, ["random"], samples[:2], out=tmp_path, seed=1))
    assert len(calls) == 2
    assert not np.allclose(zero["value"], one["value"])


def damaged(folder):
    """The folder with one truncated part; its method."""
    path = sorted(folder.glob("part-*.parquet"))[0]
    (method,) = pd.read_parquet(path)["method"].unique()
    path.write_bytes(path.read_bytes()[:-200])
    return method


@pytest.mark.parametrize("where", ["os.replace", "pandas.DataFrame.to_parquet"])
def test_a_part_is_whole_or_not_there(wb, samples, tmp_path, monkeypatch, where):
    evaluate(wb, ["edges"], samples[:2], out=tmp_path)
    before = {path.name for path in tmp_path.iterdir()}

    def interrupted(_, path, **_settings):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupted if "pandas" in where else interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate(wb, CHEAP, samples[:2], out=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == before


def interrupt(*_given):
    raise KeyboardInterrupt


def test_a_damaged_part_is_measured_again(wb, samples, tmp_path, calls):
    sound = evaluate(wb, CHEAP, samples[:2], out=tmp_path)
    method = damaged(tmp_path)
    calls.clear()
    with pytest.warns(UserWarning, match=r"part-.*parquet is unreadable .*measured again"):
        again = evaluate(wb, CHEAP, samples[:2], out=tmp_path)
    assert calls == [(method, 2)]
    assert_frame_equal(sound, again)


def test_a_damaged_part_is_mended(wb, samples, tmp_path, calls, recwarn):
    sound = evaluate(wb, CHEAP, samples[:2], out=tmp_path)
    damaged(tmp_path)
    evaluate(wb, CHEAP, samples[:2], out=tmp_path)
    calls.clear()
    recwarn.clear()
    assert_frame_equal(sound, evaluate(wb, CHEAP, samples[:2], out=tmp_path))
    assert calls == []
    assert not [w for w in recwarn if "unreadable" in str(w.message)]


def test_what_a_killed_writer_left_is_ignored(wb, samples, tmp_path, calls, recwarn):
    sound = evaluate(wb, CHEAP, samples[:2], out=tmp_path)
    path = next(tmp_path.glob("part-*.parquet"))
    path.rename(tmp_path / f".{path.name}.4711")
    (tmp_path / ".part-0123.parquet.4712").write_bytes(b"half a")
    calls.clear()
    assert_frame_equal(sound, evaluate(wb, CHEAP, samples[:2], out=tmp_path))
    assert len(calls) == 1
    assert not [w for w in recwarn if "unreadable" in str(w.message)]


def test_a_run_killed_at_its_very_start_goes_on(wb, samples, tmp_path):
    (tmp_path / ".settings.json.4711").write_text("{")
    again = evaluate(wb, CHEAP, samples[:1], out=tmp_path)
    assert_frame_equal(again, evaluate(wb, CHEAP, samples[:1]))


def test_an_error_keeps_what_was_measured_before(wb, samples, tmp_path, calls, monkeypatch):
    counted = riba.METHODS["oracle"]
    with monkeypatch.context() as patch:
        patch.setitem(riba.METHODS, "oracle", failing_for(samples[3], counted))
        with pytest.raises(ValueError, match="out of luck"):
            evaluate(wb, CHEAP, samples, out=tmp_path, batch=2)
    assert len(parts(tmp_path)) == 3
    calls.clear()
    again = evaluate(wb, CHEAP, samples, out=tmp_path, batch=2)
    assert sorted(calls) == [("edges", 2), ("oracle", 2), ("oracle", 2)]
    assert_frame_equal(again, evaluate(wb, CHEAP, samples))


def failing_for(sample, method):
    @functools.wraps(method.function)
    def run(query, **settings):
        if any(torch.equal(image, sample.image) for image in query.images):
            raise ValueError("out of luck")
        return method.function(query, **settings)

    return dataclasses.replace(method, function=run)


RUNNER = """
import os, signal, sys
from functools import partial
from pathlib import Path
import torch
import riba
from riba import datasets, workbench
from riba.method.statistics import FeatureStatistics

datasets.DATA = home = Path(sys.argv[1])
workbench.REFERENCE_IMAGES = 40
FeatureStatistics.cached = partial(FeatureStatistics.cached, folder=home)
torch.set_num_threads(1)
wb = riba.load()
methods, samples = sys.argv[3:], [wb.test[i] for i in range(int(sys.argv[2]))]
print("ready", flush=True)
while out := sys.stdin.readline().strip():
    child = os.fork()
    if not child:
        riba.evaluate(wb, methods, samples, ["rank_accuracy"], out=out, batch=2)
        os._exit(0)
    if sys.stdin.readline() == "kill\\n":  # not yet waited for, so the number is still its own
        os.kill(child, signal.SIGKILL)
    print(os.waitpid(child, 0)[1], flush=True)
"""
"""A new process for every folder named on stdin; forked, because importing torch takes seconds."""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL, no fork")
def test_three_kills_change_nothing(wb, home, tmp_path):
    methods, count = ["gradient", "grad-cam", "edges", "random"], 24
    out, chance = tmp_path / "killed", random.Random(0)
    (tmp_path / "runner.py").write_text(RUNNER)
    command = [sys.executable, str(tmp_path / "runner.py"), str(home), str(count), *methods]
    survived = {}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as runner:
        try:
            assert runner.stdout.readline() == "ready\n"
            for more in (0, chance.randint(1, 10), chance.randint(1, 10)):
                tell(runner, out)
                wait_until_there(len(survived) + more, out)
                time.sleep(chance.uniform(0, 0.05))  # in the midst of whatever it does then
                tell(runner, "kill")
                assert os.WTERMSIG(int(runner.stdout.readline())) == signal.SIGKILL
                before, survived = survived, stamped(out)
                assert before.items() <= survived.items()
            assert 0 < len(survived) < len(methods) * count // 2
            tell(runner, out)
            tell(runner, "wait")
            assert int(runner.stdout.readline()) == 0
        finally:
            runner.kill()
    finished = stamped(out)
    assert survived.items() <= finished.items()
    found = pd.concat([pd.read_parquet(out / name) for name in finished])
    assert not found.duplicated(["digest", "method", "seed", "metric", "mask"]).any()
    assert len(found) == len(methods) * count * 2
    scenes = [wb.test[i] for i in range(count)]
    kept = evaluate(wb, methods, scenes, ["rank_accuracy"], out=out)
    assert stamped(out) == finished
    whole = evaluate(wb, methods, scenes, ["rank_accuracy"], out=tmp_path / "whole", batch=2)
    assert_frame_equal(kept, whole)


def tell(runner, line):
    print(line, file=runner.stdin, flush=True)


def stamped(out):
    paths = out.glob("part-*.parquet")
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def wait_until_there(count, out):
    until = time.monotonic() + 60
    while len(list(out.glob("part-*.parquet"))) < count:
        assert time.monotonic() < until
        time.sleep(0.005)


# --- executors -----------------------------------------------------------------------------------

THREADED = [method for method in METHODS if method != "iba"]


@pytest.mark.parametrize(
    "methods",
    [
        pytest.param(THREADED, id="others"),
        pytest.param(["iba"], id="iba"),
    ],
)
def test_threads_give_the_same_table(wb, samples, tmp_path, methods):
    one, other = dataclasses.replace(wb), dataclasses.replace(wb)  # each with a memory of its own
    ask = {"methods": methods, "samples": samples, "metrics": MEASURES[:1], "batch": 2}
    with ThreadPoolExecutor(2) as pool:
        threads = evaluate(one, executor=pool, out=tmp_path, **ask)
    assert_frame_equal(threads, evaluate(other, **ask))
    assert len(parts(tmp_path)) == 3 * len(methods)


@pytest.fixture(scope="module")
def pool():
    """Two processes of their own."""
    with ProcessPoolExecutor(2, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        yield pool


def test_processes_give_the_same_table(wb, samples, pool, tmp_path, monkeypatch):
    methods, some = ["gradient", "iba", "oracle"], samples[:4]
    alone = evaluate(wb, methods, some, batch=2)
    out = tmp_path / "parts"
    assert_frame_equal(evaluate(wb, methods, some, executor=pool, out=out, batch=2), alone)
    assert len(parts(out)) == 2 * len(methods)
    monkeypatch.chdir(tmp_path)  # where the workers are not: their "afar" is another folder
    some, methods = some[:2], ["gradient", "oracle"]
    alone = evaluate(wb, methods, some, batch=1)
    afar = evaluate(wb, methods, some, executor=pool, out="afar", batch=1)
    assert_frame_equal(afar, alone)
    assert len(parts(tmp_path / "afar")) == 4
    own = dataclasses.replace(wb, model=of_a_notebook(wb.model))
    assert_frame_equal(evaluate(own, methods, some, executor=pool, batch=1), alone)


def of_a_notebook(model):
    """A network whose class no worker can import."""

    class Own(torch.nn.Sequential):
        pass

    return Own(model).eval()


class Afar(Executor):
    """A worker that reads what it is sent, and does not see the folder of results."""

    def submit(self, work, block):
        future = Future()
        future.set_result(work(dataclasses.replace(block, folder=None)))
        return future


def test_results_of_workers_afar_are_written_here(wb, samples, tmp_path):
    table = evaluate(wb, CHEAP, samples[:4], out=tmp_path, executor=Afar(), batch=2)
    assert len(parts(tmp_path)) == 4
    assert_frame_equal(table, evaluate(wb, CHEAP, samples[:4]))


def test_a_failing_block_leaves_the_others_results(wb, samples, tmp_path, calls, monkeypatch):
    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setitem(riba.METHODS, "oracle", failing_for(samples[3], riba.METHODS["oracle"]))
        with pytest.raises(RuntimeError, match=r"1 of 3 blocks failed.* out of luck; .*kept"):
            evaluate(wb, CHEAP, samples, out=tmp_path, batch=2, executor=pool)
    before = parts(tmp_path)
    assert len(before) == 5
    calls.clear()
    with ThreadPoolExecutor(2) as pool:
        again = evaluate(wb, CHEAP, samples, out=tmp_path, batch=2, executor=pool)
    assert calls == [("oracle", 2)]
    assert before.items() <= parts(tmp_path).items()
    assert_frame_equal(again, evaluate(wb, CHEAP, samples))


METHODS_TO_KILL = ["gradient", "grad-cam", "edges", "random", "lrp-epsilon-plus"]


def kill_later(out, find_worker):
    """Kill a worker once something has been written; in the background."""

    def kill():
        wait_until_there(2, out)
        os.kill(find_worker(), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_worker_of_a_pool_is_killed(wb, tmp_path):
    samples, out = datasets.Scenes("test", 24), tmp_path / "out"
    out.mkdir()
    ask = {"methods": METHODS_TO_KILL, "samples": samples, "batch": 2}
    with ProcessPoolExecutor(2, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        killer = kill_later(out, lambda: next(iter(pool._processes)))
        with pytest.raises(RuntimeError, match="results are kept: fix the cause and run it again"):
            evaluate(wb, out=out, executor=pool, **ask)
        killer.join()
    survived = stamped(out)
    assert 2 <= len(survived) < 12 * len(METHODS_TO_KILL)
    again = evaluate(wb, out=out, **ask)
    assert survived.items() <= stamped(out).items()
    assert_frame_equal(again, evaluate(wb, **ask), rtol=1e-5)
    assert [path.name for path in out.iterdir() if path.name.startswith(".workbench")] == []


@pytest.fixture(scope="module")
def cluster():
    """Dask with two workers, each a process under a nanny that starts another if it dies."""
    distributed = pytest.importorskip("distributed")
    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**settings) as local, distributed.Client(local) as client:
        client.run(torch.set_num_threads, 1)
        yield client


def test_dask_gives_the_same_table(wb, samples, cluster, tmp_path):
    methods = ["gradient", "iba", "oracle"]
    alone = evaluate(wb, methods, samples[:4], batch=2)
    there = evaluate(wb, methods, samples[:4], executor=cluster.get_executor(), batch=2)
    assert_frame_equal(there, alone)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_worker_of_dask_is_killed(wb, cluster, tmp_path):
    samples, out = datasets.Scenes("test", 24), tmp_path / "out"
    out.mkdir()
    ask = {"methods": METHODS_TO_KILL, "samples": samples, "batch": 2}
    running = cluster.run(os.getpid)
    killer = kill_later(out, lambda: next(iter(running.values())))
    table = evaluate(wb, out=out, executor=cluster.get_executor(), **ask)
    killer.join()
    assert len(stamped(out)) == 12 * len(METHODS_TO_KILL)
    assert_frame_equal(table, evaluate(wb, **ask), rtol=1e-5)


def test_a_worker_that_does_not_reach_the_network_says_so(wb, tmp_path):
    with workers.packed(wb, tmp_path) as path:
        unpacked = workers.unpacked(path)
        assert torch.equal(unpacked.model.classifier[2].bias, wb.model.classifier[2].bias)
        path.write_bytes(path.read_bytes()[:-1] + b"!")
        workers.unpacked.cache_clear()
        with pytest.raises(ValueError, match="is not the file that this run wrote"):
            workers.unpacked(path)
    with pytest.raises(FileNotFoundError, match="choose as out= a folder that all machines share"):
        workers.unpacked(path)
    assert list(tmp_path.iterdir()) == []


def test_samples_that_cannot_be_judged_are_passed_over_by_name(wb, samples):
    good, plain = samples[0], samples[1]
    odd = [
        dataclasses.replace(plain, mask=None, name="bare"),
        dataclasses.replace(plain, mask=torch.zeros_like(plain.mask), name="empty"),
        dataclasses.replace(plain, mask=plain.mask[:64], name="cropped"),
        dataclasses.replace(plain, label=None, name="unlabelled"),
        good,
    ]
    with pytest.warns(UserWarning, match="5 samples were left out") as said:
        table = evaluate(wb, ["edges"], [good, *odd], ["mass_accuracy"])
    assert set(table["sample"]) == {good.name}
    text = str(said[0].message)
    for part in ("bare has no mask", "empty: its mask is empty", "cropped: mask", "unlabelled: no"):
        assert part in text
    assert f"{good.name} is in the list twice" in text


def test_samples_without_a_label_are_explained_for_what_the_network_sees(wb, samples, tmp_path):
    bare = [dataclasses.replace(sample, label=None) for sample in samples[:2]]
    ask = {"methods": ["edges"], "metrics": ["mass_accuracy"], "explain": "prediction"}
    first = evaluate(wb, samples=bare, out=tmp_path, **ask)
    assert first["label"].isna().all()
    assert len(first) == 4
    for mixed in ([*bare, samples[2]], [samples[2], *bare]):  # the second time all of it is stored
        together = evaluate(wb, samples=mixed, out=tmp_path, **ask)
        assert_frame_equal(together, evaluate(wb, samples=mixed, **ask))


def test_one_method_with_several_settings_side_by_side(wb, samples, pool, tmp_path):
    plain = riba.METHODS["iba"]
    asked = {"β 1": plain.using(beta=1.0, steps=2), "β 10": plain.using(steps=2)}
    ask = {"samples": samples[:2], "metrics": ["mass_accuracy"], "out": tmp_path}
    table = evaluate(wb, asked, **ask)
    values = table.pivot_table(index=["sample", "mask"], columns="method", values="value")
    assert (values["β 1"] != values["β 10"]).all()
    elsewhere = evaluate(wb, asked, samples[:2], ["mass_accuracy"], executor=pool)
    assert_frame_equal(elsewhere, table)
    changed = {**asked, "β 1": plain.using(beta=2.0, steps=2)}  # the same name, another method
    again = evaluate(wb, changed, **ask)
    other, same = (again["method"] == name for name in asked)
    assert (again.loc[other, "value"].to_numpy() != table.loc[other, "value"].to_numpy()).all()
    assert_frame_equal(again[same], table[same])


def halves(query, upper=1.0):
    """A method of a user."""
    maps = torch.ones_like(query.images[:, 0])
    maps[:, : maps.shape[1] // 2] = upper
    return maps


def test_a_method_of_a_user_by_name_and_with_settings(wb, samples, monkeypatch, tmp_path):
    monkeypatch.setitem(riba.METHODS, "halves", riba.Method(halves, settings={"upper": 2.0}))
    out = {"out": tmp_path}
    first = evaluate(wb, ["halves"], samples[:2], ["mass_accuracy"], **out)
    monkeypatch.setitem(riba.METHODS, "halves", riba.METHODS["halves"].using(upper=0.0))
    second = evaluate(wb, ["halves"], samples[:2], ["mass_accuracy"], **out)
    assert (first["value"].to_numpy() != second["value"].to_numpy()).all()
    with pytest.raises(ValueError, match="halves has no setting 'uper'; near matches: upper"):
        riba.METHODS["halves"].using(uper=1.0)


def test_versions_tell_functions_apart_and_are_the_same_in_every_process(pool):
    def times(factor):
        return riba.Method(lambda query: factor * query.images.sum(1))

    versions = {times(factor).version for factor in (1, -1)}
    versions |= {riba.METHODS["iba"].version, riba.METHODS["iba"].using(beta=1.0).version}
    versions |= {riba.METHODS["edges"].version}
    assert len(versions) == 5
    assert times(1).version == times(1).version
    elsewhere = pool.submit(version_of, cloudpickle.dumps([times(1)])).result()
    assert elsewhere == [times(1).version]


def version_of(methods):
    return [method.version for method in cloudpickle.loads(methods)]


@pytest.mark.parametrize("returned", [np.zeros((1, 128, 128)), torch.zeros(1, 3, 128, 128), None])
def test_what_is_no_map_is_refused(wb, samples, returned):
    odd = riba.Method(lambda query: returned)
    with pytest.raises(ValueError, match="and not maps, B×H×W: let its function return"):
        evaluate(wb, {"odd": odd}, samples[:1], ["mass_accuracy"])
    with pytest.raises(ValueError, match=r"wrap your function, riba\.Method\(function\)"):
        evaluate(wb, {"odd": odd.function}, samples[:1], ["mass_accuracy"])


def test_results_of_older_code_are_measured_again(wb, samples, calls, tmp_path):
    evaluate(wb, ["oracle"], samples[:2], out=tmp_path)
    for path in tmp_path.glob("part-*.parquet"):
        pd.read_parquet(path).assign(version="1" * 12).to_parquet(path, index=False)
    calls.clear()
    evaluate(wb, ["oracle"], samples[:2], out=tmp_path)
    assert sum(count for _, count in calls) == 2


def test_memory_that_runs_out_is_met_with_smaller_batches(wb, samples, calls, monkeypatch):
    plain, tried = riba.METHODS["oracle"], []

    @functools.wraps(plain.function)
    def hungry(query):
        tried.append(len(query.images))
        if len(query.images) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return plain.function(query)

    whole = evaluate(wb, ["oracle", "edges"], samples[:5], batch=5)
    monkeypatch.setitem(riba.METHODS, "oracle", dataclasses.replace(plain, function=hungry))
    assert_frame_equal(evaluate(wb, ["oracle", "edges"], samples[:5], batch=5), whole)
    assert tried == [5, 2, 2, 1]


class Living(Sequence):
    """Samples that are counted as long as somebody holds them."""

    def __init__(self, samples):
        self.samples, self.living, self.most = samples, weakref.WeakSet(), 0

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        image = self.samples[index].image.clone()
        self.living.add(image)
        self.most = max(self.most, len(self.living))
        return dataclasses.replace(self.samples[index], image=image)


@pytest.mark.parametrize("threads", [False, True])
def test_samples_are_held_no_longer_than_needed(wb, threads):
    held = Living([datasets.Scenes("test", 24)[index] for index in range(24)])
    with ThreadPoolExecutor(2) as pool:
        executor = pool if threads else None
        table = evaluate(wb, CHEAP, held, batch=2, executor=executor, ahead=3)
    assert table["sample"].nunique() == 24
    assert held.most <= 2 * ((3 + 2 if threads else 1) + 1)


# --- what is refused -----------------------------------------------------------------------------


def changed(sample, **fields):
    return [dataclasses.replace(sample, name="odd", **fields)]


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda s: {"methods": ["edges", "relevance-ib"]}, "'relevance-ib'; near matches: relev"),
        (lambda s: {"methods": ["zzzz"]}, "no method 'zzzz'.*riba.METHODS lists all"),
        (lambda s: {"metrics": ["rank_acuracy"]}, "no metric 'rank_acuracy'.*: rank_accuracy"),
        (lambda s: {"metrics": ["zzzz"]}, "no metric 'zzzz'.*METRICS lists all"),
        (lambda s: {"samples": []}, "no samples to evaluate"),
        (
            lambda s: {"samples": changed(s, mask=s.mask[:64])},
            r"sample odd: mask \(64, 128\) and image \(128, 128\) differ in size",
        ),
        (
            lambda s: {"samples": changed(s, mask=torch.zeros_like(s.mask))},
            "sample odd: its mask is empty",
        ),
        (
            lambda s: {"samples": [s], "metrics": ["two_object_contrast"]},
            "sample test-0 has one object only: two_object_contrast needs two",
        ),
        (lambda s: {"methods": []}, "no methods"),
        (lambda s: {"metrics": []}, "no metrics"),
    ],
)
def test_bad_input_is_refused_in_words(wb, samples, tmp_path, ask, words):
    given = {"methods": CHEAP, "samples": samples[:1]} | ask(samples[0])
    with pytest.raises(ValueError, match=words):
        evaluate(wb, **given, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_settings_are_compared_before_the_first_result_is_there(wb, samples, tmp_path):
    evaluate(wb, CHEAP, samples[:1], out=tmp_path)
    for part in parts(tmp_path):
        (tmp_path / part).unlink()
    other = dataclasses.replace(wb, layer="features.11")
    with pytest.raises(ValueError, match="other settings"):
        evaluate(other, CHEAP, samples[:1], out=tmp_path)


def test_a_folder_of_other_settings_is_refused(wb, samples, tmp_path):
    evaluate(wb, CHEAP, samples[:1], out=tmp_path)
    before = parts(tmp_path)
    other = dataclasses.replace(wb, layer="features.11")
    words = "other settings .layer 'features.14' there, 'features.11' here.: choose another"
    with pytest.raises(ValueError, match=words):
        evaluate(other, CHEAP, samples[:2], out=tmp_path)
    shallow = dataclasses.replace(wb, depths=wb.depths[:2])
    with pytest.raises(ValueError, match=r"other settings .depths"):
        evaluate(shallow, CHEAP, samples[:2], out=tmp_path)
    for changed in ({"sets": ((1,),) * 10}, {"top": "features.16"}):
        with pytest.raises(ValueError, match=f"other settings .{next(iter(changed))} "):
            evaluate(dataclasses.replace(wb, **changed), CHEAP, samples[:2], out=tmp_path)
    assert parts(tmp_path) == before


def test_a_folder_of_something_else_is_refused(wb, samples, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty and holds no results of an evaluation"):
        evaluate(wb, CHEAP, samples[:1], out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


# --- statistics ----------------------------------------------------------------------------------


def tidy(values, metric="rank_accuracy", mask="strict", area=0.1):
    """A table out of {method: {scene: value or values of its objects}}."""
    rows = [
        (scene, f"{scene}/{place}", method, metric, mask, float(value), area, place, 0)
        for method, scenes in values.items()
        for scene, objects in scenes.items()
        for place, value in enumerate(np.atleast_1d(objects))
    ]
    names = ["sample", "digest", "method", "metric", "mask", "value", "area", "label", "seed"]
    return pd.DataFrame(rows, columns=names)


def test_intervals_and_tests_go_over_groups():
    draw = np.random.default_rng(3)
    groups = draw.normal(size=12)
    values = {f"{g}-{k}": groups[g] + 0.01 * draw.normal() for g in range(12) for k in range(5)}
    other = {name: value + 0.001 * draw.normal() for name, value in values.items()}
    table = tidy({"relevance-iba": values, "iba": other})
    alone = evaluation.summarise(table)
    grouped = table.assign(group=table["sample"].str.split("-").str[0])
    together = evaluation.summarise(grouped)
    np.testing.assert_allclose(together["mean"], alone["mean"])
    assert (together["high"] - together["low"] > 1.8 * (alone["high"] - alone["low"])).all()
    resampled = [np.mean(draw.choice(groups, 12)) for _ in range(4000)]  # the slow way
    low, high = np.quantile(resampled, [0.025, 0.975])
    np.testing.assert_allclose(together[["low", "high"]].iloc[0], [low, high], atol=0.08)
    differences = pd.Series(other) - pd.Series(values)
    by_group = differences.groupby(differences.index.str.split("-").str[0]).mean()
    expected = wilcoxon(by_group).pvalue
    assert evaluation.compare(grouped)["p_holm"].item() == pytest.approx(expected)


def test_summarise_is_the_mean_over_scenes():
    table = tidy({
        "one": {"a": 0.1, "b": 0.4, "c": 0.7},
        "two": {"a": [0.2, 0.4], "b": 0.9},  # two objects of a scene count as one
        "gap": {"a": np.nan, "b": 0.4, "c": [np.nan, 0.8]},
        "same": {"a": 0.3, "b": 0.3, "c": 0.3},
    })  # fmt: skip
    table = pd.concat([table, tidy({"one": {"a": 0.5, "b": 0.7}}, mask="banded")])
    summary = evaluation.summarise(table)
    assert list(summary.columns) == SUMMARY
    assert list(summary["method"]) == ["one", "two", "gap", "same", "one"]
    assert list(summary["mask"]) == [*["strict"] * 4, "banded"]
    assert list(summary["n"]) == [3, 2, 2, 3, 2]
    np.testing.assert_allclose(summary["mean"], [0.4, 0.6, 0.6, 0.3, 0.6])
    inside = (summary["low"] < summary["mean"]) & (summary["mean"] < summary["high"])
    assert inside.tolist() == [True, True, True, False, True]
    np.testing.assert_allclose(summary.loc[3, ["mean", "low", "high"]].astype(float), 0.3)


def test_the_interval_is_that_of_a_mean():
    values = np.random.default_rng(1).normal(0.5, 0.1, 400)
    summary = evaluation.summarise(tidy({"m": dict(enumerate(values))})).iloc[0]
    half = 1.96 * values.std() / np.sqrt(400)
    assert summary["low"] == pytest.approx(values.mean() - half, abs=half / 10)
    assert summary["high"] == pytest.approx(values.mean() + half, abs=half / 10)
    again = evaluation.summarise(tidy({"m": dict(enumerate(values))})).iloc[0]
    pd.testing.assert_series_equal(summary, again)


def test_compare_pairs_over_common_scenes():
    generator = np.random.default_rng(2)
    base = dict(enumerate(generator.random(12)))
    methods = {
        "relevance-iba": base,
        "better": {s: v + 0.1 + generator.random() / 10 for s, v in base.items()},
        "similar": {s: v + generator.normal() / 10 for s, v in base.items() if s < 9} | {99: 5.0},
        "gap": {s: np.nan if s == 0 else v - 0.1 * s for s, v in base.items()},
        "same": base,
    }
    table = pd.concat([tidy(methods), tidy({"better": {0: 1.0}}, metric="other")])
    found = evaluation.compare(table)
    assert list(found.columns) == COMPARISON
    assert list(found["method"]) == ["better", "similar", "gap", "same"]
    assert set(found["against"]) == {"relevance-iba"}
    found = found.set_index("method")
    assert found["n"].to_dict() == {"better": 12, "similar": 9, "gap": 11, "same": 12}
    raw = {}
    for name, scenes in methods.items():
        pairs = [(v, base[s]) for s, v in scenes.items() if s in base and not np.isnan(v)]
        differences = np.subtract(*np.transpose(pairs))
        if name in found.index:
            assert found.loc[name, "difference"] == pytest.approx(differences.mean())
            raw[name] = wilcoxon(differences).pvalue if differences.any() else 1.0
            low, high = found.loc[name, ["low", "high"]]
            assert low <= found.loc[name, "difference"] <= high
    factors = dict(zip(sorted(raw, key=raw.get), (4, 3, 2, 1), strict=True))
    expected, largest = {}, 0.0
    for name, factor in factors.items():
        largest = expected[name] = max(largest, min(1, raw[name] * factor))
    assert found["p_holm"].to_dict() == pytest.approx(expected)
    assert found.loc["better", "p_holm"] == pytest.approx(4 * raw["better"])  # 0.002 in twelve
    same = found.loc["same"]
    assert (same["difference"], same["low"], same["high"], same["p_holm"]) == (0, 0, 0, 1)


def test_compare_corrects_within_a_metric_and_mask():
    generator = np.random.default_rng(3)
    tables = [
        tidy({m: dict(enumerate(generator.random(10))) for m in ("one", "two", "three")}, mask=mask)
        for mask in ("strict", "banded")
    ]
    found = evaluation.compare(pd.concat(tables), against="two", resamples=100)
    apart = [evaluation.compare(table, against="two", resamples=100) for table in tables]
    assert_frame_equal(found, pd.concat(apart, ignore_index=True))
    assert len(found) == 4


def test_objects_of_a_scene_are_one_pair():
    table = tidy({
        "relevance-iba": {"a": [0.2, 0.4], "b": [0.1, 0.1]},
        "other": {"a": [0.3, 0.9], "b": [0.2, 0.0]},
    })  # fmt: skip
    (row,) = evaluation.compare(table).itertuples()
    assert row.n == 2
    assert row.difference == pytest.approx(0.15)


def test_compare_needs_the_method_to_compare_with():
    table = tidy({"iba": {"a": 0.1, "b": 0.2}, "edges": {"a": 0.1, "b": 0.2}})
    with pytest.raises(ValueError, match="no method 'relevance-iba' in this table: iba, edges"):
        evaluation.compare(table)
    assert list(evaluation.compare(table, against="iba")["method"]) == ["edges"]


@pytest.mark.parametrize(
    ("p", "corrected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.001, 0.5, 0.6], [0.003, 1, 1]),
        ([0.02], [0.02]),
        ([0.03, 0.03], [0.06, 0.06]),
    ],
)
def test_holm_by_hand(p, corrected):
    given = pd.Series(p, index=list("dbca")[: len(p)])
    expected = pd.Series(corrected, index=given.index, dtype=float)
    pd.testing.assert_series_equal(evaluation.holm(given), expected)


def test_holm_keeps_the_order_and_ends_at_one():
    p = pd.Series(np.random.default_rng(4).random(40) ** 3)
    corrected = evaluation.holm(p)
    assert corrected[p.sort_values().index].is_monotonic_increasing
    assert (corrected >= p).all()
    assert corrected.max() == 1


def test_tables_are_written(tmp_path):
    generator = np.random.default_rng(5)
    names = [f"scene-{i}" for i in range(8)]
    tables = [
        tidy(
            {m: dict(zip(names, generator.random(8), strict=True)) for m in methods},
            metric=metric,
            mask=mask,
        )
        for methods in [("relevance-iba", "iba", "oracle")]
        for metric, mask in (("mass_accuracy", "strict"), ("deletion", "none"))
    ]
    table = pd.concat(tables, ignore_index=True)
    summary = evaluation.summarise(table)
    folder = tmp_path / "deep" / "data"
    tool.write_tables(table, summary, {"seed": 0, "split": "Prüfung"}, folder)

    masked = pd.read_csv(folder / "evaluation.csv")
    assert list(masked.columns) == SUMMARY
    expected = summary[summary["mask"] != "none"].reset_index(drop=True)
    assert_frame_equal(masked, expected, rtol=1e-5)
    compared = pd.read_csv(folder / "comparisons.csv")
    assert list(compared.columns) == COMPARISON
    assert_frame_equal(compared, evaluation.compare(tables[0]), rtol=1e-5)
    asked = pd.read_csv(folder / "faithfulness.csv")
    assert list(asked.columns) == [name for name in SUMMARY if name != "mask"]
    assert set(asked["metric"]) == {"deletion"}
    note = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert note == {"seed": 0, "split": "Prüfung"}
    kept = pd.read_parquet(folder / "evaluation.parquet")
    assert list(kept.columns) == list(table.columns)
    assert len(kept) == len(table)
    np.testing.assert_allclose(kept["value"], table["value"], rtol=1e-6)
    for name in ("sample", "digest", "method", "metric", "mask", "label", "seed"):
        assert kept[name].astype(table[name].dtype).tolist() == table[name].tolist()
    assert_frame_equal(evaluation.summarise(kept), summary, rtol=1e-5, check_dtype=False)


def test_without_relevance_iba_nothing_is_compared(tmp_path):
    table = tidy({"iba": {"a": 0.1, "b": 0.2}})
    tool.write_tables(table, evaluation.summarise(table), {}, tmp_path)
    assert not (tmp_path / "comparisons.csv").exists()
    assert (tmp_path / "evaluation.csv").exists()


def test_the_committed_tables_follow_from_the_committed_values():
    table = pd.read_parquet(DATA / "evaluation.parquet")
    table = table[table["metric"].isin([*evaluation.HEADLINE, "two_object_contrast", "deletion"])]
    table["value"] = table["value"].astype(
        float
    )  # float32 in the file: the sixth digit may differ by one
    summary = tool.rounded(evaluation.summarise(table))
    keys = ["method", "metric", "mask"]
    faithfulness = pd.read_csv(DATA / "faithfulness.csv").assign(mask="none")
    committed = pd.concat([pd.read_csv(DATA / "evaluation.csv"), faithfulness]).set_index(keys)
    summary = summary.set_index(keys)
    assert_frame_equal(summary, committed.loc[summary.index], rtol=1e-5, check_dtype=False)


# --- which samples -------------------------------------------------------------------------------


def test_select_passes_over_what_cannot_be_judged(wb, samples):
    tiny = torch.zeros_like(samples[0].mask)
    tiny[:5, :5] = True
    second = wb.predict(samples[3].image[None])[0].topk(2).indices[1].item()
    good = samples[0], samples[1], samples[2]
    given = [
        good[0],
        dataclasses.replace(samples[3], label=second),
        dataclasses.replace(samples[4], mask=tiny),
        dataclasses.replace(samples[4], mask=~tiny),
        *good[1:],
    ]
    kept, passed = evaluation.select(wb, given, 3)
    assert [sample.name for sample in kept] == [sample.name for sample in good]
    assert passed == {"wrong class": 1, "object too small or large": 2}
    first, none = evaluation.select(wb, given, 1)
    assert [sample.name for sample in first] == [good[0].name]
    assert set(none.values()) == {0}
    assert len(evaluation.select(wb, given, 99)[0]) == 3


def test_a_second_object_may_be_the_networks_favourite(wb, pairs):
    best = wb.predict(torch.stack([sample.image for sample in pairs])).topk(3).indices
    for sample, (first, second, third) in zip(pairs, best.tolist(), strict=True):
        as_labelled = [dataclasses.replace(sample, label=row) for row in (first, second, third)]
        kept, passed = evaluation.select(wb, as_labelled, 3)
        assert [one.label for one in kept] == [first, second]
        assert passed["wrong class"] == 1


class Blind(torch.nn.Module):
    """The network, but it misses one object of one image."""

    def __init__(self, model, sample):
        super().__init__()
        self.model, self.sample = model, sample

    def forward(self, images):
        logits = self.model(images)
        seen = (images == self.sample.image).flatten(1).all(1)
        logits[seen, self.sample.label] -= 100
        return logits


def test_pairs_are_both_objects_of_a_scene(wb, pairs):
    blind = dataclasses.replace(wb, model=Blind(wb.model, pairs[2]).eval())
    for given, indices, missed in ((wb, [0, 0, 1, 1], 0), (blind, [0, 0, 2, 2], 1)):
        (sides,) = given.test.pairs().values()
        kept, passed = evaluation.select_pairs(given, sides, 2)
        assert [sample.name for sample in kept] == [f"test-others=1-{i}" for i in indices]
        assert passed == missed
        for one, two in zip(kept[::2], kept[1::2], strict=True):
            assert torch.equal(one.mask, two.other)
            top = given.predict(one.image[None])[0].topk(2).indices.tolist()
            assert sorted([one.label, two.label]) == sorted(top)


# --- the command line ----------------------------------------------------------------------------


def command(folder, *words, main=evaluation.main):
    few = ["--scenes", "2", "--pairs", "2", "--slow", "2", "--out", str(folder / "parts")]
    main([*few, *words])


@pytest.mark.parametrize(
    ("module", "more"), [("riba.evaluation", []), ("tools.evaluation", ["tables"])]
)
def test_help_names_the_arguments(module, more):
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "100"},
        cwd=DATA.parent,
    )
    assert f"python -m {module}" in done.stdout
    names = ("network", "data", "split", "scenes", "pairs", "top", "slow")
    names += ("methods", "metrics", "seed", "workers", "out")
    for name in (*names, *more):
        assert f"--{name}" in done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--methods", "relevance-ibas"], "error: no method 'relevance-ibas'; near matches: rel"),
        (["--metrics", "rank_acuracy"], "error: no metric 'rank_acuracy'; near matches: rank_ac"),
        (["--split", "train"], "argument --split: invalid choice"),
        (["--methods", "iba", "--pair-methods", "ibas"], "error: --pair-methods: ibas not among"),
    ],
)
def test_a_mistake_ends_in_a_sentence(home, tmp_path, capsys, words, told):
    with pytest.raises(SystemExit) as ended:
        command(tmp_path, *words)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_the_command_measures_and_writes(home, tmp_path, capsys):
    chosen = ["--methods", "oracle", "relevance-iba", "random"]
    measured = ["--metrics", *evaluation.HEADLINE, "two_object_contrast", "deletion"]
    tables = tmp_path / "tables"
    command(tmp_path, *chosen, *measured, "--tables", str(tables), main=tool.main)
    summary = pd.read_csv(tables / "evaluation.csv")
    assert set(summary["method"]) == {"oracle", "relevance-iba", "random"}
    contrast = summary["metric"] == "two_object_contrast"
    assert set(summary.loc[contrast, "n"]) == {2}
    assert set(summary.loc[~contrast, "n"]) == {2}
    note = json.loads((tables / "evaluation.json").read_text(encoding="utf-8"))
    assert (note["scenes"], note["two-object scenes"], note["seed"]) == (2, 2, 0)
    assert "relevance-iba" in capsys.readouterr().out


def test_pairs_may_be_measured_with_fewer_methods(home, tmp_path):
    tables = tmp_path / "tables"
    words = ["--methods", "oracle", "edges", "--pair-methods", "edges", "--tables", str(tables)]
    command(tmp_path, *words, "--metrics", "mass_accuracy", "two_object_contrast", main=tool.main)
    methods = pd.read_csv(tables / "evaluation.csv").groupby("metric")["method"].unique().map(set)
    assert methods["mass_accuracy"] == {"oracle", "edges"}
    assert methods["two_object_contrast"] == {"edges"}


def test_an_odd_number_of_scenes_is_measured_whole(home, tmp_path, capsys):
    command(tmp_path, "--scenes", "5", "--methods", "oracle", "--metrics", "rank_accuracy")
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[-1] for line in lines] == ["5", "5"]


def test_faithfulness_is_measured_on_fewer_scenes_and_not_on_smoothed_maps(home, tmp_path):
    tables = tmp_path / "tables"
    words = ["--methods", "edges", "--metrics", "rank_accuracy", "deletion", "--faithful", "1"]
    command(tmp_path, *words, "--blur", "4", "--tables", str(tables), main=tool.main)
    located = pd.read_csv(tables / "evaluation.csv")
    assert set(located["method"]) == {"edges", "edges, smoothed 4 px"}
    assert set(located["n"]) == {2}
    asked = pd.read_csv(tables / "faithfulness.csv")
    assert list(asked["method"]) == ["edges"]
    assert list(asked["n"]) == [1]


def test_methods_may_have_metrics_of_their_own(wb, samples):
    wanted = {"edges": ["rank_accuracy"], "random": ["mass_accuracy", "deletion"]}
    table = riba.evaluate(wb, list(wanted), samples[:2], wanted)
    measured = table.groupby("method")["metric"].unique().map(set).to_dict()
    assert measured == {name: set(metrics) for name, metrics in wanted.items()}


def test_methods_that_cannot_run_are_named(wb, samples):
    bare = dataclasses.replace(wb, depths=wb.depths[:2], betas={})
    with pytest.MonkeyPatch.context() as patch:
        few = {
            name: riba.METHODS[name] for name in ("iba", "iba-depth-4", "iba-calibrated", "edges")
        }
        patch.setattr(command_line, "METHODS", few)
        names, refusals = command_line.applicable(bare, samples[0])
    assert names == ["iba", "edges"]
    assert "2 depths" in refusals["method iba-depth-4"]
    assert "not calibrated" in refusals["method iba-calibrated"]


def test_a_smoothed_map_is_not_computed_again(wb, samples):
    calls = []

    def counted(query):
        calls.append(len(query.images))
        return riba.METHODS["edges"].function(query)

    sharp = riba.Method(counted)
    methods = {"m": sharp, "m, smoothed 4 px": sharp.using(blur=4.0)}
    table = riba.evaluate(wb, methods, samples[:2], ["mass_accuracy"]).set_index("method")
    assert calls == [2]
    alone = riba.evaluate(wb, {"m": sharp.using(blur=4.0)}, samples[:2], ["mass_accuracy"])
    assert table.loc["m, smoothed 4 px", "value"].tolist() == alone["value"].tolist()
