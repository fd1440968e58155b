"""The bounded memory."""

import copy
import pickle

import pytest

from riba.storage import Memory


def test_the_least_recently_used_value_is_dropped():
    memory = Memory(2)
    assert memory.get("a") is None
    assert memory.put("a", 1) == 1
    memory.put("b", 2)
    assert memory.get("a") == 1  # so that b is now the older
    memory.put("c", 3)
    assert [memory.get(key) for key in "abc"] == [1, None, 3]
    memory.put("a", 9)
    assert (memory.get("a"), memory.get("c")) == (9, 3)


def test_values_are_computed_once_and_errors_are_not_stored():
    memory, calls = Memory(), []
    with pytest.raises(ZeroDivisionError):
        memory.once("a", lambda: 1 / 0)
    for _ in range(2):
        assert memory.once("a", lambda: calls.append(1) or 5) == 5
    assert len(calls) == 1


def test_a_pickled_or_copied_memory_is_empty():
    memory = Memory(3)
    memory.put("a", 1)
    for twin in (pickle.loads(pickle.dumps(memory)), copy.deepcopy(memory)):
        assert (twin.size, twin.get("a")) == (3, None)
