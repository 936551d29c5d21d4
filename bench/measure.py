"""Measures sides of a row in turns, and says what the numbers are."""

import os
import resource
import statistics
import time
from pathlib import Path


def drop_caches():
    """The page cache is empty afterwards, and what was written is on the disk."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def seconds(work):
    """Wall time that a function takes."""
    start = time.monotonic()
    work()
    return time.monotonic() - start


def cpu_seconds(work):
    """Wall time, and processor time of the programs that it runs to their end."""
    def used():
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime
    before = used()
    wall = seconds(work)
    return wall, used() - before


def rounds(sides, count, say):
    """The rounds' numbers, from 1, each with the sides in another order.

    The disk and the other programs of the machine vary over minutes; so all sides are measured in each
    round, and none is always the first.
    """
    for number in range(1, count + 1):
        say(f"round {number} of {count}")
        first = (number - 1) % len(sides)
        yield number, sides[first:] + sides[:first]


def median(values):
    """The middle one, or the mean of the two in the middle."""
    return statistics.median(values)


def percentile(values, percent):
    """The smallest value that so many per cent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
