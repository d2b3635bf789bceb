"""Timing on a GPU, with a stand-in for CUDA: captures, fallbacks, and rotating buffers."""

from __future__ import annotations

import contextlib
import time
from types import SimpleNamespace

import pytest
import torch
from lib import timing


class Event:
    def __init__(self, enable_timing):
        self.at_s = 0.0

    def record(self):
        self.at_s = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return (end.at_s - self.at_s) * 1e3


@pytest.fixture
def cuda(monkeypatch):
    """Streams that do nothing, and graphs that call again what ran while they were captured."""
    state = SimpleNamespace(capturing=False, captured=[])

    class Graph:
        def replay(self):
            time.sleep(1e-4)

    @contextlib.contextmanager
    def capture(graph):
        state.capturing = True
        try:
            yield
            state.captured.append(graph)
        finally:
            state.capturing = False

    stream = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)
    stand_ins = dict(
        Event=Event,
        CUDAGraph=Graph,
        graph=capture,
        Stream=lambda: stream,
        stream=lambda _: contextlib.nullcontext(),
        current_stream=lambda: stream,
        synchronize=lambda *_: None,
        empty_cache=lambda: None,
    )
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return state


def test_short_calls_are_replayed_and_long_ones_are_not(cuda):
    contestants = {"short": [lambda: None] * 4, "long": [lambda: time.sleep(0.07)] * 4}
    timings, failures = timing.time_in_turns(contestants, "cuda", 0.01)
    assert failures == {} and len(cuda.captured) == 1
    assert timings["short"].method == "graph" and timings["short"].graph_us == timings["short"].best_us
    assert timings["long"].method == "events" and timings["long"].graph_us is None
    assert 60_000 < timings["long"].best_us < 500_000
    assert timing.ratio(timings["long"], timings["short"]) == timings["long"].called_us / timings["short"].called_us


def test_contestant_that_cannot_be_captured_is_timed_by_events(cuda):
    def looks_at_a_value():
        if cuda.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")

    timings, failures = timing.time_in_turns({"synchronising": [looks_at_a_value]}, "cuda", 0.01)
    assert failures == {} and timings["synchronising"].method == "events"


def test_calls_rotate_through_their_buffers_and_very_long_ones_keep_to_one(cuda):
    seen, slow = [], []
    contestants = {
        "rotating": [lambda index=index: seen.append(index) for index in range(4)],
        "slow": [lambda index=index: (time.sleep(0.008), slow.append(index)) for index in range(3)],
    }
    timing.time_in_turns(contestants, "cuda", 0.01)
    assert seen[-8:] == [0, 1, 2, 3] * 2
    assert len(slow) >= 2 and set(slow) == {0}  # from the start: many sets of a slow call would take minutes


def test_profiled_events_have_what_launches_are_counted_by():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        torch.ones(3) + 1
    event = next(iter(profiler.events()))
    assert event.device_type == torch.autograd.DeviceType.CPU
    assert event.time_range.elapsed_us() >= 0 and event.time_range.start >= 0
