"""Whether a time grows with the size of what is read, told on a machine that others use, too."""

from __future__ import annotations

import gc
from collections.abc import Callable

TIMES = 16  # a square takes 256 times as long, what is in proportion 16 times
MOST = 48  # TIMES ** 1.4: a machine that is three times as slow for the larger size is still believed


def faster_than_its_size(seconds: Callable[[int], float], size: int, *, enough: float = 0.1) -> str:
    """What was measured where TIMES the size takes more than MOST times as long in five of five tries, "" otherwise.

    Less than `enough` seconds for the larger size is always good: below it a clock tells nothing. The collector of
    garbage rests meanwhile, as its work grows with everything that the tests before have left.
    """
    measured = []
    gc.collect()
    gc.disable()
    try:
        seconds(size)  # imports and what is made once
        for _ in range(5):
            small, large = seconds(size), seconds(TIMES * size)
            if large < max(enough, MOST * small):
                return ""
            measured.append(f"{size}: {small:.3f} s, {TIMES * size}: {large:.3f} s")
    finally:
        gc.enable()
    return "; ".join(measured)
