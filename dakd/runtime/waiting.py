"""A wait for another process that lasts is announced, with what it waits for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread, Timer

from dakd.runtime.console import show


@contextmanager
def saying_after(text: str, after_s: float = 3.0) -> Iterator[None]:
    """Print the text, once, where the block takes longer than `after_s`."""
    timer = Timer(after_s, show, [f"dakd: {text}"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Watch:
    """Prints a text, once, where one of many blocks takes longer than `after_s`, and calls `end` at `limit_s`.

    A thread looks, so that no block starts one. Use: `with watch: ...` for each block, of one thread, and `close` in
    the end.  is_over: whether a block has reached the limit.
    """

    def __init__(self, text: str, after_s: float, limit_s: float, end: Callable[[], None]) -> None:
        self._text, self._after_s, self._limit_s, self._end = text, after_s, limit_s, end
        self._since_s: float | None = None
        self._closed, self.is_over = Event(), False
        Thread(target=self._look, name="dakd-watch", daemon=True).start()

    def __enter__(self) -> None:
        self._since_s = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._since_s = None

    def close(self) -> None:
        self._closed.set()

    def _look(self) -> None:
        is_said = False
        while not self._closed.wait(min(self._after_s, self._limit_s) / 4):
            since_s = self._since_s
            waited_s = 0.0 if since_s is None else time.monotonic() - since_s
            if waited_s > self._after_s and not is_said:
                is_said = True
                show(f"dakd: {self._text}")
            if waited_s > self._limit_s:
                self.is_over = True
                self._end()
                return
