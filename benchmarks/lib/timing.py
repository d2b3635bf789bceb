"""The timing of a call: contestants take turns over rotating buffers, and a time is the median over the turns.

On a GPU a turn is one pass over all buffer sets, between two events ("events": the time that a Python program sees).
Calls that Python may not launch as fast as the GPU runs them are also captured into a CUDA graph and replayed ("graph":
the time of the GPU alone). On a CPU a turn is one call; with one thread its CPU time counts, which other processes
disturb less.
"""

from __future__ import annotations

import gc
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch

from lib.device import synchronise

Call = Callable[[], object]

# Calls longer than this are not captured: a graph of their thousands of kernels would take seconds.
_CAPTURED_BELOW_US = 60_000
_LONG_US, _VERY_LONG_US = 5000, 60_000
_WARM_CALLS = 3
_LEAST_TURNS, _MAX_TURNS = 3, 100


class OutOfTime(Exception):
    """A contestant was not ready within its limit."""


@dataclass
class Timing:
    """Microseconds a call. called_us: launched one by one; graph_us: replayed from a graph, None if not captured."""

    called_us: float
    graph_us: float | None = None
    method: str = "events"

    def per(self, count: int) -> Timing:
        """The time of one of `count` things that a call does."""
        graph_us = None if self.graph_us is None else self.graph_us / count
        return Timing(self.called_us / count, graph_us, self.method)

    @property
    def best_us(self) -> float:
        """The GPU's own time if it was measured."""
        return self.called_us if self.graph_us is None else self.graph_us


def ratio(slow: Timing, fast: Timing) -> float:
    """slow / fast, both by the same method."""
    if slow.graph_us is not None and fast.graph_us is not None:
        return slow.graph_us / fast.graph_us
    return slow.called_us / fast.called_us


def time_in_turns(
    contestants: dict[str, Sequence[Call]], device: str, seconds: float, limit_s: float = 120.0
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Times each contestant: a sequence of calls that do the same on different buffers.

    seconds: spent on each, about.  limit_s: for the first call of each, in which compilers run.
    Returns the timings, and why the others failed.
    """
    make = _GpuRunner if torch.device(device).type == "cuda" else _CpuRunner
    runners, failures = {}, {}
    for name, calls in contestants.items():
        try:
            with time_limit(limit_s):
                runners[name] = make(calls, device)
        # Anything may go wrong in one contestant (memory, a compiler, an operator); the others are timed all the same.
        except Exception as error:
            failures[name] = reason(error)
            synchronise(device)
    turns = {name: _num_turns(seconds, runner.turn_s) for name, runner in runners.items()}
    for turn in range(max(turns.values(), default=0)):
        for name, runner in runners.items():
            if turn < turns[name]:
                runner.run_turn()
    timings = {name: runner.timing() for name, runner in runners.items()}
    runners.clear()
    gc.collect()
    if torch.device(device).type == "cuda":
        with suppress(RuntimeError):  # after a failed capture the allocator may refuse
            torch.cuda.empty_cache()
    return timings, failures


def _num_turns(seconds: float, turn_s: float) -> int:
    if turn_s > _VERY_LONG_US * 1e-6:
        return max(1, min(_LEAST_TURNS, int(seconds / turn_s)))
    return max(_LEAST_TURNS, min(_MAX_TURNS, int(seconds / turn_s)))


def reason(error: BaseException) -> str:
    """The first line of an error, and the last, where compilers name the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    said = lines[0][:160] if len(lines) == 1 else f"{lines[0][:160]} ... {lines[-1][:160]}"
    return f"{type(error).__name__}: {said}"


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises OutOfTime in the main thread after `seconds`."""

    def stop(_signal, _frame):
        raise OutOfTime(f"not ready within {seconds:.0f} s")

    if seconds <= 0:
        raise OutOfTime("no time left for it")
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class _CpuRunner:
    calls: Sequence[Call]
    device: str
    times_us: list[float] = field(default_factory=list)
    turn_s: float = 0.0
    turn: int = 0

    def __post_init__(self) -> None:
        self.calls[0]()
        start = time.perf_counter()
        self.calls[-1]()
        self.turn_s = max(1e-7, time.perf_counter() - start)

    def run_turn(self) -> None:
        clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
        call = self.calls[self.turn % len(self.calls)]
        start = clock()
        call()
        self.times_us.append((clock() - start) * 1e6)
        self.turn += 1

    def timing(self) -> Timing:
        method = "CPU time" if torch.get_num_threads() == 1 else "wall clock"
        return Timing(statistics.median(self.times_us), method=method)


@dataclass
class _GpuRunner:
    calls: Sequence[Call]
    device: str
    called_us: list[float] = field(default_factory=list)
    graph_us: list[float] = field(default_factory=list)
    turn_s: float = 0.0
    graph: torch.cuda.CUDAGraph | None = None

    def __post_init__(self) -> None:
        # Capture needs a warm-up on a side stream, in which everything is compiled and allocated.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.calls[0]()
            stream.synchronize()
            start = time.perf_counter()
            self.calls[0]()
            stream.synchronize()
            if time.perf_counter() - start > _LONG_US * 1e-6:
                self.calls = self.calls[:1]  # a long call flushes the cache anyway, and many would take minutes
            else:
                for _ in range(_WARM_CALLS - 2):
                    self.calls[0]()
        torch.cuda.current_stream().wait_stream(stream)
        called_us = self._pass_us(self._call_all)
        if called_us < _VERY_LONG_US:
            called_us = self._pass_us(self._call_all)
        if called_us < _CAPTURED_BELOW_US:
            self._capture()
        # The number of turns follows from the host's time, not the GPU's.
        start = time.perf_counter()
        self.run_turn()
        torch.cuda.synchronize()
        self.turn_s = max(1e-6, time.perf_counter() - start)
        self.called_us.clear()
        self.graph_us.clear()

    def _call_all(self) -> None:
        # Results are kept until the pass ends, so that they too lie in different memory.
        kept = [call() for call in self.calls]
        del kept

    def _capture(self) -> None:
        """Leaves `graph` None if a contestant cannot be captured, because it reads values on the host."""
        # A graph of autograd that waits for the collector still holds the inputs' nodes on the warm-up's stream, and a
        # capture that meets them fails.
        gc.collect()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._call_all()
            graph.replay()
            torch.cuda.synchronize()
        except RuntimeError:
            torch.cuda.synchronize()
            return
        self.graph = graph

    def _pass_us(self, run: Callable[[], None]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3 / len(self.calls)

    def run_turn(self) -> None:
        self.called_us.append(self._pass_us(self._call_all))
        if self.graph is not None:
            self.graph_us.append(self._pass_us(self.graph.replay))

    def timing(self) -> Timing:
        called = statistics.median(self.called_us)
        if not self.graph_us:
            return Timing(called)
        return Timing(called, statistics.median(self.graph_us), "graph")
