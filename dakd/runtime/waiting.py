"""A wait for another process that lasts is announced, with what it waits for."""

from __future__ import annotations

import time
from collections.abc import Iterator
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
    """Prints a text, once, where one of many blocks takes longer than `after_s`; a thread looks, no block starts one.

    Use: `with watch: ...` for each block, of one thread, and `close` in the end.
    """

    def __init__(self, text: str, after_s: float) -> None:
        self._text, self._after_s, self._since_s = text, after_s, None
        self._closed = Event()
        Thread(target=self._look, name="dakd-watch", daemon=True).start()

    def __enter__(self) -> None:
        self._since_s = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._since_s = None

    def close(self) -> None:
        self._closed.set()

    def _look(self) -> None:
        while not self._closed.wait(self._after_s / 4):
            since_s = self._since_s
            if since_s is not None and time.monotonic() - since_s > self._after_s:
                show(f"dakd: {self._text}")
                return
