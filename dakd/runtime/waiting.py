"""A wait for another process that lasts is announced, with what it waits for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer


@contextmanager
def saying_after(text: str, after_s: float = 3.0) -> Iterator[None]:
    """Print the text, once, where the block takes longer than `after_s`."""
    timer = Timer(after_s, print, [f"dakd: {text}"], {"flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
