"""Servers that do not answer for a while: what was asked is asked again."""

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from perfuse.console import say
from perfuse.errors import ServerError

Result = TypeVar("Result")


def outlast(work: Callable[[], Result], pauses_s: Iterable[float]) -> Result:
    """What `work` answers, asked again after each pause while a server does not answer; ServerError when it stays away."""
    left = iter(pauses_s)
    while True:
        try:
            return work()
        except ServerError as error:
            pause = next(left, None)
            if pause is None:
                raise
            say(f"tried again in {pause:.0f} s: {error}")
        time.sleep(pause)
