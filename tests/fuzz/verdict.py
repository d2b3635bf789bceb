"""The verdict on a bad input: it is read as it was, skipped, or refused in a message of ours, and within a time limit.

DAKD_FUZZ: bad inputs per test; without it 40, always the same ones.
"""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from hypothesis import HealthCheck, settings

import dakd
from dakd.data.readers import BadFile

OURS = str(Path(dakd.__file__).parent)
# Limits of one reading: its CPU time, the wall clock's time, which counts waiting too, and memory.
SECONDS, WAITING_SECONDS, MEMORY_GIB = 20.0, 120.0, 2.0
COUNTS: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)

fuzzed = settings(
    max_examples=int(os.environ.get("DAKD_FUZZ", 40)),
    derandomize="DAKD_FUZZ" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

# No bad input may cause one of these. (Importing a library executes code; nothing is imported while sealed.)
_FORBIDDEN = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen",
              "socket.connect", "ctypes.dlopen")  # fmt: skip
_seal = {"is_shut": False, "broken": [], "is_watched": False}


class Hung(BaseException):
    """A reading took too long; no `except Exception` on the way catches it."""


def _watch(event: str, _arguments: tuple) -> None:
    if _seal["is_shut"] and event in _FORBIDDEN:
        _seal["broken"].append(event)
        raise AssertionError(f"a bad input led to {event}")


def judge(target: str, read: Callable[[], str | None], *names: str) -> str:
    """Runs `read` on a bad input; returns "read", "skipped" or "refused".

    AssertionError unless `read` ends well, or raises an error of ours that names one of `names`.

    read: returns "skipped" if the input was skipped and counted, otherwise "read" or None.
    """
    COUNTS[target]["tried"] += 1
    refusal = None
    try:
        with _sealed():
            outcome = read() or "read"
    except AssertionError:
        raise
    except Hung:
        outcome = "hung"
    except Exception as error:
        outcome, refusal = "refused", error
    assert outcome != "hung", f"not ready within {SECONDS:g} s of its own time, or {WAITING_SECONDS:g} s"
    # Checked first: on its way up this error may have become another.
    assert not _seal["broken"], f"executed: {_seal['broken']}"
    if refusal is not None:
        _require_clear(refusal, names)
    COUNTS[target][outcome] += 1
    return outcome


def _require_clear(error: Exception, names: tuple[str, ...]) -> None:
    where = traceback.extract_tb(error.__traceback__)[-1]
    shown = f"{type(error).__name__}: {str(error)[:600]!r}, raised at {where.filename}:{where.lineno}"
    assert where.filename.startswith(OURS), f"from the depths: {shown}"
    assert isinstance(error, ValueError | RuntimeError | OSError | BadFile), f"of a kind that is not ours: {shown}"
    assert len(str(error).split()) >= 4, f"without words: {shown}"
    assert not names or any(name in str(error) for name in names), f"names none of {names}: {shown}"


@contextlib.contextmanager
def _sealed() -> Iterator[None]:
    """A context with limited time and memory, in which nothing may be executed."""
    if not _seal["is_watched"]:
        sys.addaudithook(_watch)  # for good: it cannot be removed
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = {number: signal.signal(number, _stop) for number in (signal.SIGALRM, signal.SIGPROF)}
    _seal.update(is_shut=True, broken=[], is_watched=True)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + int(MEMORY_GIB * 2**30), hard))
    # A library's own loop receives no signal: then the process ends with a traceback.
    faulthandler.dump_traceback_later(2 * WAITING_SECONDS, exit=True)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAITING_SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for number, handler in before.items():
            signal.signal(number, handler)
        _seal["is_shut"] = False


def _stop(_signal, _frame) -> None:
    raise Hung
