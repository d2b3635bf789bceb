"""Contestants that take seconds a call, timed in rounds: each is called once a round, and its least time counts.

The median over the turns of lib/timing.py needs more turns than such calls can have. What disturbs a call only makes it
longer, so the least of a few rounds is nearest to the undisturbed time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from lib.device import synchronise
from lib.timing import Call, Timing, reason, time_limit


def least_of_rounds(
    calls: dict[str, Call], device: str, num_rounds: int, limit_s: float = 600.0
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Times each call `num_rounds` times, in turns, after a first call that is not timed.

    limit_s: for the first call of each, in which compilers run.  Returns the timings, and why the others failed.
    """
    ready, failures = {}, {}
    for name, call in calls.items():
        try:
            with time_limit(limit_s):
                call()
            ready[name] = call
        # Anything may go wrong in one contestant (memory, a compiler); the others are timed all the same.
        except Exception as error:
            failures[name] = reason(error)
    clock, method = clock_of(device)
    times_s: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(num_rounds):
        for name, call in ready.items():
            synchronise(device)
            start = clock()
            call()
            synchronise(device)
            times_s[name].append(clock() - start)
    return {name: Timing(min(times) * 1e6, method=method) for name, times in times_s.items()}, failures


def clock_of(device: str) -> tuple[Callable[[], float], str]:
    """The clock and its name: with one thread on a CPU the process's CPU time, helper threads of gloo included."""
    if torch.device(device).type == "cpu" and torch.get_num_threads() == 1:
        return time.process_time, "CPU time"
    return time.perf_counter, "wall clock"
