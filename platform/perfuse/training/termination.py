"""SIGTERM as a wish: spot machines send it half a minute before they go."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def on_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, in place of what it does else; in the main thread alone, where signals arrive."""
    wish = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    before = signal.signal(signal.SIGTERM, lambda *_: wish.set())
    try:
        yield wish
    finally:
        signal.signal(signal.SIGTERM, before)
