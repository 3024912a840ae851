import numpy as np
import pytest

from anyecg.loaders.slots import Slots, sorted_set


@pytest.mark.parametrize("n_slots", [1, 3, 7, 50])
def test_what_was_used_last_is_still_where_it_was_put(n_slots):
    rng = np.random.default_rng(n_slots)
    slots, places, used = Slots(40, n_slots), np.full(min(n_slots, 40), -1), []
    for _ in range(300):
        keys = rng.choice(40, rng.integers(1, 12))
        for some, here in slots.parts(keys):
            for key, slot in slots.take(some):
                places[slot] = key
            np.testing.assert_array_equal(places[slots[keys[here]]], keys[here])
            used.insert(0, some)
        recent: set[int] = set()
        for some in used:
            recent |= set(some.tolist())
            if len(recent) > n_slots:
                break
            assert all(key in slots for key in recent)
        assert sum(key in slots for key in range(40)) <= n_slots


def test_parts_are_all_keys_in_bites_that_fit():
    keys = np.random.default_rng(1).integers(0, 100, 500)
    parts = list(Slots(100, 30).parts(keys))
    assert [len(some) for some, _ in parts] == [30, 30, 30, len(np.unique(keys)) - 90]
    assert sorted(np.concatenate([here for _, here in parts]).tolist()) == list(range(500))
    assert all(set(keys[here]) == set(some) for some, here in parts)


@pytest.mark.parametrize("keys", [[], [3], [3, 3, 3], [5, 1, 5, 0]])
def test_the_sorted_set_is_that_of_numpy(keys):
    np.testing.assert_array_equal(sorted_set(np.array(keys, np.int64)), np.unique(np.array(keys, np.int64)))


def test_the_one_used_longest_ago_gives_way():
    slots = Slots(10, 2)
    for key in (0, 1, 0, 2):
        slots.take(np.array([key]))
    assert (0 in slots, 1 in slots, 2 in slots) == (True, False, True)


def test_a_dropped_key_has_to_be_brought_again():
    slots = Slots(10, 2)
    slots.take(np.array([3, 4]))
    slots.drop(4)
    assert 4 not in slots
    assert [key for key, _ in slots.take(np.array([3, 4]))] == [4]
