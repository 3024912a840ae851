"""From the events of every rank to what limits the data path: pure functions of what was measured."""

from collections import defaultdict
from typing import NamedTuple

# Stages of work, as a window meets them, and what they are called; the others are waiting.
NAMES = {
    "order": "order", "read": "read", "check": "check", "unpack": "decompress", "gather": "gather", "dali": "DALI",
    "copy": "copy to device", "step": "step",
}  # fmt: skip
LIMITS = {"disk": "the disk", "memory": "memory", "pcie": "PCIe", "model": "the model"}
# Faster than the disk by more than noise: the shards came from the page cache, so the disk was no limit.
CACHED = 1.1
# Below this share of waiting the network, not its data, decides the rate.
LITTLE_WAITING = 0.1


class Span(NamedTuple):
    """A stage at work, from start to end in ns."""

    stage: str
    start: int
    end: int


class StageTime(NamedTuple):
    """What one rank did in one stage; ``busy`` and ``while_waiting`` in seconds, threads abreast counted once."""

    events: int
    busy: float
    while_waiting: float
    n_bytes: int
    n_windows: int


class RankProfile(NamedTuple):
    """What one rank measured; limits in windows a second."""

    seconds: float
    n_windows: int
    n_batches: int
    n_events: int
    waited: float
    stages: dict
    limits: dict


def own_spans(events):
    """Return a Span for every stretch of time of every thread, named by the innermost event that it lies in."""
    threads = defaultdict(list)
    for event in events:
        threads[event.thread].append(event)
    spans = []
    for of_thread in threads.values():
        # Of two with the same times the one counted first lies within the other.
        of_thread.reverse()
        of_thread.sort(key=lambda event: (event.start, -event.end))
        spans += _own_spans_of_thread(of_thread)
    return spans


def _own_spans_of_thread(events):
    spans: list[Span] = []
    around: list = []
    now = 0
    for event in [*events, None]:
        while around and (event is None or around[-1].end <= event.start):
            done = around.pop()
            spans.append(Span(done.stage, now, done.end))
            now = done.end
        if event is not None:
            if around:
                spans.append(Span(around[-1].stage, now, event.start))
            around.append(event)
            now = event.start
    return [span for span in spans if span.end > span.start]


def merged(intervals):
    """Return (start, end) intervals as disjoint ones, ascending."""
    found: list[list[int]] = []
    for start, end in sorted(intervals):
        if found and start <= found[-1][1]:
            found[-1][1] = max(found[-1][1], end)
        else:
            found.append([start, end])
    return found


def length(intervals):
    """Return the length of disjoint intervals."""
    return sum(end - start for start, end in intervals)


def common(some, others):
    """Return the length that two ascending lists of disjoint intervals share."""
    shared, one, other = 0, 0, 0
    while one < len(some) and other < len(others):
        start, end = max(some[one][0], others[other][0]), min(some[one][1], others[other][1])
        shared += max(0, end - start)
        if some[one][1] < others[other][1]:
            one += 1
        else:
            other += 1
    return shared


def rank_profile(events, *, seconds, n_windows, limits):
    """Return the RankProfile of the events of one rank's threads."""
    waiting = merged((event.start, event.end) for event in events if event.stage == "wait")
    work = defaultdict(list)
    for span in own_spans(events):
        work[span.stage].append((span.start, span.end))
    stages = {}
    for stage in NAMES:
        of_stage = [event for event in events if event.stage == stage]
        busy = merged(work[stage])
        stages[stage] = StageTime(
            len(of_stage), length(busy) * 1e-9, common(waiting, busy) * 1e-9,
            sum(event.n_bytes for event in of_stage), sum(event.n_windows for event in of_stage),
        )  # fmt: skip
    n_batches = sum(event.stage == "wait" for event in events)
    return RankProfile(seconds, n_windows, n_batches, len(events), length(waiting) * 1e-9, stages, limits)


def _sum_of_rates(amounts, seconds):
    return sum(amount / time for amount, time in zip(amounts, seconds, strict=True) if time)


def summarise(ranks):
    """Return the figures of all ranks together.

    Parameters
    ----------
    ranks : list of RankProfile

    Returns
    -------
    dict
        whole, stages (a row for each stage that was at work), limits (windows a second), nearest (a limit's name).
        Rates are summed over ranks, shares are of the ranks' summed seconds.
    """
    seconds, waited = sum(rank.seconds for rank in ranks), sum(rank.waited for rank in ranks)
    per_rank = [rank.n_windows / rank.seconds for rank in ranks]
    rows = []
    for stage in NAMES:
        times = [rank.stages[stage] for rank in ranks]
        if not any(time.events for time in times):
            continue
        busy = [time.busy for time in times]
        rows.append(
            {
                "stage": stage, "events": sum(time.events for time in times),
                "n_windows": sum(time.n_windows for time in times), "n_bytes": sum(time.n_bytes for time in times),
                "windows_per_s": _sum_of_rates([time.n_windows for time in times], busy),
                "mb_per_s": _sum_of_rates([time.n_bytes * 1e-6 for time in times], busy),
                "share": sum(busy) / seconds,
                "share_of_waiting": sum(time.while_waiting for time in times) / waited if waited else 0.0,
            }
        )  # fmt: skip
    limits = {name: sum(rank.limits[name] for rank in ranks) for name in LIMITS if name in ranks[0].limits}
    whole = {
        "ranks": len(ranks), "seconds": seconds / len(ranks), "n_windows": sum(rank.n_windows for rank in ranks),
        "n_batches": sum(rank.n_batches for rank in ranks), "n_events": sum(rank.n_events for rank in ranks),
        "windows_per_s": sum(per_rank), "windows_per_s_per_rank": per_rank, "waiting_share": waited / seconds,
    }  # fmt: skip
    return {"whole": whole, "stages": rows, "limits": limits, "nearest": nearest_limit(limits, sum(per_rank))}


def nearest_limit(limits, rate):
    """Return the name of the lowest limit, without the disk where more came than it can give."""
    bounding = {name: limit for name, limit in limits.items() if name != "disk" or rate <= CACHED * limit}
    return min(bounding, key=lambda name: bounding[name])


def _slowest(rows):
    rows = [row for row in rows if row["stage"] != "step"]
    if not rows:
        return "Reading limits the path: its stages ran in processes of their own, where nothing is counted"
    row = max(rows, key=lambda row: row["share"])
    name = NAMES[row["stage"]]
    said = f"{name[0].upper()}{name[1:]} limits the path: it is at work {row['share']:.0%} of the time"
    return said + (f" and alone could do {row['windows_per_s']:,.0f} windows/s" if row["n_windows"] else "")


def verdict(summary):
    """Say in one sentence what limits the path."""
    rate, limits = summary["whole"]["windows_per_s"], summary["limits"]
    waiting, nearest = summary["whole"]["waiting_share"], summary["nearest"]
    if "model" in limits and waiting < LITTLE_WAITING:
        said = f"The model limits the path: it waits for data {waiting:.1%} of the time"
    else:
        said = _slowest(summary["stages"])
    said += (
        f"; the {rate:,.0f} windows/s reached are {rate / limits[nearest]:.0%} of the nearest physical limit, "
        f"{LIMITS[nearest]} ({limits[nearest]:,.0f} windows/s)"
    )
    if "disk" in limits and rate > CACHED * limits["disk"]:
        said += "; the shards came from the page cache, faster than the disk"
    return said + "."


def trace_events(rank, events, names):
    """Return one rank's events in Chrome's trace format.

    Parameters
    ----------
    events : list of anyecg.loaders.counters.Event
        Times in ns from the start of the measurement.
    names : dict
        Native thread number -> name.
    """
    threads = {thread: number for number, thread in enumerate(dict.fromkeys([*names, *(e.thread for e in events)]))}
    found: list[dict] = [{"ph": "M", "name": "process_name", "pid": rank, "args": {"name": f"rank {rank}"}}]
    for thread, number in threads.items():
        name = names.get(thread, f"thread {number}")
        found.append({"ph": "M", "name": "thread_name", "pid": rank, "tid": number, "args": {"name": name}})
    for event in events:
        found.append(
            {
                "ph": "X", "name": NAMES.get(event.stage, event.stage), "pid": rank, "tid": threads[event.thread],
                "ts": event.start / 1000, "dur": (event.end - event.start) / 1000,
                "args": {"windows": event.n_windows, "bytes": event.n_bytes},
            }
        )  # fmt: skip
    return found
