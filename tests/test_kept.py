"""What was used longest ago is forgotten first."""

from riba.storage import Kept


def test_the_things_used_last_are_kept():
    kept = Kept(2)
    assert kept.recall("a") is None
    assert kept.remember("a", 1) == 1
    kept.remember("b", 2)
    assert kept.recall("a") == 1  # so that b is now the older
    kept.remember("c", 3)
    assert [kept.recall(key) for key in "abc"] == [1, None, 3]
    kept.remember("a", 9)
    assert (kept.recall("a"), kept.recall("c")) == (9, 3)
    kept.clear()
    assert kept.recall("a") is None
