"""What the figures of a profile mean, on events made by hand; the command itself is tested in tests/app."""

import json

import numpy as np
import pytest

from anyecg.app.config import Config
from anyecg.loaders.counters import Event
from anyecg.loaders.errors import AnyECGError, ShardError
from anyecg.slurm.limits import SequentialDisk, memory_copier, repeat
from anyecg.slurm.profile import check_shards
from anyecg.slurm.profile_numbers import (
    common,
    length,
    merged,
    nearest_limit,
    own_spans,
    rank_profile,
    summarise,
    trace_events,
    verdict,
)

SECOND = 1_000_000_000


def event(stage, start, end, thread=1, n_windows=0, n_bytes=0):
    return Event(stage, int(start * SECOND), int(end * SECOND), thread, n_bytes, n_windows)


def random_events(seed, n_events=200, depth=3):
    """Return nested events of several threads."""
    rng = np.random.default_rng(seed)
    events = []

    def fill(thread, start, end, left):
        cuts = np.sort(rng.integers(start, end, 6))
        for low, high in cuts.reshape(3, 2).tolist():
            if left and high > low:
                events.append(Event(str(rng.choice(["read", "gather", "dali", "wait"])), low, high, thread, 8, 1))
                fill(thread, low, high, left - 1)

    for thread in range(3):
        fill(thread, 0, 10_000, depth)
    return [events[place] for place in rng.permutation(len(events))]


@pytest.mark.parametrize("seed", range(20))
def test_own_time_is_that_of_the_innermost_event_instant_by_instant(seed):
    events = random_events(seed)
    found = own_spans(events)
    for thread in range(3):
        of_thread = [event for event in events if event.thread == thread]
        wanted = np.full(10_000, "", dtype="<U6")
        for one in sorted(of_thread, key=lambda event: event.start - event.end):
            wanted[one.start : one.end] = one.stage
        drawn = np.full(10_000, "", dtype="<U6")
        for span in own_spans(of_thread):
            assert (drawn[span.start : span.end] == "").all()
            drawn[span.start : span.end] = span.stage
        np.testing.assert_array_equal(drawn, wanted)
    assert len(found) == sum(len(own_spans([e for e in events if e.thread == thread])) for thread in range(3))


@pytest.mark.parametrize("seed", range(20))
def test_intervals_agree_with_masks(seed):
    rng = np.random.default_rng(seed)
    lists = [np.sort(rng.integers(0, 500, (20, 2)), axis=1).tolist() for _ in range(2)]
    masks = np.zeros((2, 500), bool)
    for mask, intervals in zip(masks, lists, strict=True):
        for start, end in intervals:
            mask[start:end] = True
    one, other = (merged(intervals) for intervals in lists)
    assert [length(one), length(other)] == masks.sum(axis=1).tolist()
    assert common(one, other) == masks.all(axis=0).sum()


def test_a_stage_of_two_threads_counts_its_time_once():
    events = [event("read", 0, 4, 1, 10), event("read", 2, 6, 2, 10), event("wait", 5, 7, 3)]
    stage = rank_profile(events, seconds=10.0, n_windows=20, limits={}).stages["read"]
    assert (stage.events, stage.n_windows) == (2, 20)
    assert (stage.busy, stage.while_waiting) == pytest.approx((6.0, 1.0))


def test_dali_that_waits_for_the_reader_is_not_at_work():
    events = [event("dali", 0, 5, n_windows=8), event("feed", 1, 4), event("wait", 0, 5)]
    found = rank_profile(events, seconds=5.0, n_windows=8, limits={})
    assert found.stages["dali"].busy == pytest.approx(2.0)
    assert found.waited == pytest.approx(5.0)


def two_ranks(limits, *, waited=(0, 9)):
    """Return a rank that does 40 windows in 10 s and one that does 20."""
    return [
        rank_profile(
            [
                event("read", 0, 5, 1, n, n * 100), event("gather", 5, 6, 1, n, n * 100), event("step", 9, 10, 2, n),
                event("wait", *waited, 2),
            ],
            seconds=10.0, n_windows=n, limits=limits,
        )
        for n in (40, 20)
    ]  # fmt: skip


def test_rates_are_summed_over_ranks_and_shares_averaged():
    summary = summarise(two_ranks({"disk": 100.0, "memory": 50.0}))
    assert summary["whole"]["windows_per_s"] == pytest.approx(6.0)
    assert (summary["whole"]["n_batches"], summary["whole"]["n_events"]) == (2, 8)
    assert summary["whole"]["windows_per_s_per_rank"] == pytest.approx([4.0, 2.0])
    assert summary["whole"]["waiting_share"] == pytest.approx(0.9)
    rows = {row["stage"]: row for row in summary["stages"]}
    assert list(rows) == ["read", "gather", "step"]
    assert rows["read"]["windows_per_s"] == pytest.approx(40 / 5 + 20 / 5)
    assert rows["gather"]["mb_per_s"] == pytest.approx(60 * 100 / 1e6)
    assert rows["read"]["share"] == pytest.approx(0.5)
    assert rows["read"]["share_of_waiting"] == pytest.approx(5 / 9)
    assert summary["limits"] == {"disk": 200.0, "memory": 100.0}
    assert summary["nearest"] == "memory"


def test_one_rank_is_no_special_case():
    (one, _) = two_ranks({"disk": 100.0})
    assert summarise([one])["whole"]["windows_per_s"] == pytest.approx(4.0)


def test_the_disk_is_no_limit_of_shards_from_the_page_cache():
    assert nearest_limit({"disk": 100.0, "memory": 900.0}, 90.0) == "disk"
    assert nearest_limit({"disk": 100.0, "memory": 900.0}, 200.0) == "memory"


def test_the_verdict_names_the_stage_that_is_longest_at_work():
    assert verdict(summarise(two_ranks({"disk": 30.0, "memory": 90.0}))) == (
        "Read limits the path: it is at work 50% of the time and alone could do 12 windows/s; the 6 windows/s reached "
        "are 10% of the nearest physical limit, the disk (60 windows/s)."
    )


def test_the_verdict_names_the_model_when_it_hardly_waits():
    said = verdict(summarise(two_ranks({"disk": 30.0, "memory": 90.0, "model": 3.2}, waited=(0, 0.5))))
    assert said.startswith("The model limits the path: it waits for data 5.0% of the time; the 6 windows/s")
    assert said.endswith("94% of the nearest physical limit, the model (6 windows/s).")


def test_the_verdict_says_when_the_shards_came_from_the_page_cache():
    said = verdict(summarise(two_ranks({"disk": 1.0, "memory": 90.0})))
    assert "limit, memory (180 windows/s); the shards came from the page cache, faster than the disk." in said


def test_without_counted_stages_the_verdict_says_so():
    found = rank_profile([event("wait", 0, 9)], seconds=10.0, n_windows=5, limits={"disk": 1.0, "memory": 9.0})
    assert "where nothing is counted" in verdict(summarise([found]))


def assert_valid_trace(events):
    """Check that events within a thread are nested or disjoint, and that threads and processes have names."""
    named = {(e["name"], e["pid"], e.get("tid")) for e in events if e["ph"] == "M"}
    threads = {}
    for one in (e for e in events if e["ph"] == "X"):
        assert one["ts"] >= 0
        assert one["dur"] >= 0
        assert ("process_name", one["pid"], None) in named
        assert ("thread_name", one["pid"], one["tid"]) in named
        threads.setdefault((one["pid"], one["tid"]), []).append((round(one["ts"] * 1000), round(one["dur"] * 1000)))
    for of_thread in threads.values():
        ends = []
        for start, duration in sorted(of_thread, key=lambda pair: (pair[0], -pair[1])):
            while ends and ends[-1] <= start:
                ends.pop()
            assert not ends or start + duration <= ends[-1]
            ends.append(start + duration)


@pytest.mark.parametrize("seed", range(5))
def test_the_trace_is_json_of_nested_events(seed):
    text = json.dumps([*trace_events(0, random_events(seed), {1: "consumer"}), *trace_events(1, random_events(9), {})])
    events = json.loads(text)
    assert_valid_trace(events)
    assert {event["args"]["name"] for event in events if event["name"] == "process_name"} == {"rank 0", "rank 1"}
    assert "consumer" in {event["args"]["name"] for event in events if event["name"] == "thread_name"}


@pytest.mark.parametrize("how", ["O_DIRECT", "page cache dropped"])
def test_files_are_read_from_start_to_end_again_and_again(tmp_path, how):
    paths = []
    for number, n_bytes in enumerate((10_000_000, 5_001)):
        paths.append(tmp_path / f"{number}")
        paths[-1].write_bytes(bytes(n_bytes))
    disk = SequentialDisk(paths)
    disk.how = how
    block = 4 << 20
    assert [disk.read() for _ in range(8)] == [block, block, 10_000_000 - 2 * block, 5_001] * 2
    disk.close()


def test_where_direct_reads_are_refused_the_page_cache_is_dropped():
    disk = SequentialDisk(["/proc/version"])
    assert disk.read() > 0
    assert disk.how == "page cache dropped"


def test_work_is_repeated_until_the_time_is_over_and_all_of_it_is_told():
    told = []
    done, took = repeat(memory_copier(1, 5000), 0.05, told=told.append)
    assert done % 256 == 0
    assert took >= 0.05
    assert sum(told) == pytest.approx(0.05)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 601])
def test_a_time_out_of_range_is_refused(tiny_set, seconds):
    with pytest.raises(AnyECGError, match="wanted more than 0 and at most 600"):
        check_shards(tiny_set[0], Config(), seconds)


def test_lost_shards_are_refused_before_anything_runs(tiny_copy):
    lost = next(tiny_copy.glob("*.h5"))
    lost.unlink()
    with pytest.raises(ShardError, match=f"1 files are missing or cut short, as {lost.name}"):
        check_shards(tiny_copy, Config(), 1.0)
