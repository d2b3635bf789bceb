"""What may become of a bad input: it is read as it was, or refused in words of ours; nothing else, and soon.

DAKD_FUZZ: how many bad inputs a test tries; without it a few, always the same.
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
from dakd.data.readers.base import BadFile

OURS = str(Path(dakd.__file__).parent)
# Of a reading: its own time, and the clock's, which goes on where it waits for something.
SECONDS, WAITING_SECONDS, MEMORY_GIB = 20.0, 120.0, 2.0
COUNTS: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)

fuzzed = settings(
    max_examples=int(os.environ.get("DAKD_FUZZ", 40)),
    derandomize="DAKD_FUZZ" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

# What no bad input may bring about. (Importing a library compiles and executes; nothing is imported while sealed.)
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
    """What became of the input: "read", "skipped" or "refused".

    Runs `read`; AssertionError unless it ends well or raises an error that is ours and names one of `names`.

    read: returns what became of the input where it raises nothing: "read", or "skipped" where that was counted.
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
    # Looked at first: the error may be what became of it on the way up.
    assert not _seal["broken"], f"executed: {_seal['broken']}"
    if refusal is not None:
        _require_clear(refusal, names)
    COUNTS[target][outcome] += 1
    return outcome


def _require_clear(error: Exception, names: tuple[str, ...]) -> None:
    where = traceback.extract_tb(error.__traceback__)[-1]
    told = f"{type(error).__name__}: {str(error)[:600]!r}, raised at {where.filename}:{where.lineno}"
    assert where.filename.startswith(OURS), f"from the depths: {told}"
    assert isinstance(error, ValueError | RuntimeError | OSError | BadFile), f"of a kind that is not ours: {told}"
    assert len(str(error).split()) >= 4, f"without words: {told}"
    assert not names or any(name in str(error) for name in names), f"names none of {names}: {told}"


@contextlib.contextmanager
def _sealed() -> Iterator[None]:
    """Little time, little memory, nothing executed."""
    if not _seal["is_watched"]:
        sys.addaudithook(_watch)  # for good: there is no taking it back
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = {number: signal.signal(number, _stop) for number in (signal.SIGALRM, signal.SIGPROF)}
    _seal.update(is_shut=True, broken=[], is_watched=True)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + int(MEMORY_GIB * 2**30), hard))
    # No signal gets through to a library's own loop: then the run ends, and says where.
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
