"""Loops report to whoever watches, and stop when told to."""

import pytest
import torch

import riba
from riba import progress
from riba.method.bottleneck import InformationBottleneck


def test_nobody_watches_and_nothing_is_lost(capsys):
    assert list(progress.track(iter("abc"), "letters")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""  # quicker than two seconds


def test_every_step_is_reported():
    seen = []
    with progress.watched(lambda *told: seen.append(told)):
        assert list(progress.track("ab", "letters")) == ["a", "b"]
        with progress.counter("images", 5) as count:
            count.update(3)
            count.update()
        list(progress.track(iter("x"), "no length"))
    assert seen == [
        *(("letters", done, 2) for done in (0, 1, 2)),
        *(("images", done, 5) for done in (0, 3, 4)),
        *(("no length", done, None) for done in (0, 1)),
    ]
    list(progress.track("ab", "letters"))
    assert len(seen) == 8  # only within


def test_work_can_be_stopped_at_any_step():
    done = []

    def stop(_label, steps, _total):
        if steps == 3:
            raise progress.Cancelled

    def count():
        for item in progress.track(range(10), "numbers"):
            done.append(item)

    with pytest.raises(progress.Cancelled), progress.watched(stop):
        count()
    assert done == [0, 1, 2]


@pytest.fixture(scope="module")
def wb(home):
    return riba.load()


@pytest.mark.parametrize(
    ("method", "labels"),
    [
        ("iba", {"bottleneck"}),
        ("relevance-iba-joint", {"bottleneck"}),
        ("input-iba", {"bottleneck", "prior of InputIBA", "bottleneck at the pixels", "InputIBA"}),
    ],
)
def test_what_takes_long_reports(wb, method, labels):
    seen = set()
    image = wb.test[1].image[None]
    with progress.watched(lambda label, *_: seen.add(label)):
        riba.METHODS[method](wb, image, torch.tensor([0]), seed=11)
    assert seen - {"feature statistics"} == labels


def test_a_stopped_bottleneck_leaves_nothing_behind(wb):
    iba = InformationBottleneck(wb.model, wb.layer, wb.statistics, samples=2)
    image = wb.test[1].image[None]
    whole = iba(image, [1]).nats

    def stop(_label, steps, _total):
        if steps == 4:
            raise progress.Cancelled

    with pytest.raises(progress.Cancelled), progress.watched(stop):
        iba(image, [1])
    assert iba(image, [1]).nats.equal(whole)
