"""The extender itself: extension.sh, which records its own lines."""

import os

import budget
from report import Group
from room import REPOSITORY


def measure(room, rounds, tiny, say):
    """The group's budgets; the script prints what they are of."""
    settings = {**os.environ, "BENCH_ROUNDS": "1" if tiny else str(rounds)}
    printed = room.run(REPOSITORY / "bench/extension.sh", env=settings).splitlines()
    group = Group("Extension", "trivial RUN and apt")
    for line in printed:
        if not line.startswith("|"):
            say(line)
    for key, value, image, _ in budget.extension(printed):
        group.image = image
        group.budget(key, value)
    return group
