"""What an index costs: its size, and the time that it adds to the one pass over a layer.

decode.rs times the steps in one thread, in turns, on a layer in memory; `layoutfs index build` is the whole
program, which puts them on three.
"""

import json
import os

import image
import measure as m
from ours import Ours
from report import Group
from room import REPOSITORY

# Rounds of decode.rs, at least.
STEPS = 11
BENCH = ("cargo", "bench", "--locked", "--bench", "decode", "--")


def measure(room, rounds, tiny, say):
    """The group's rows."""
    name = image.of_this_machine(room, ("lib",), 10 if tiny else 200)
    layout = image.layout_of(name)
    layer = layout.manifest()["layers"][0]
    blob = layout.blob(layer["digest"])
    say("building decode.rs")
    room.run(*BENCH[:-1], "--no-run", cwd=REPOSITORY)
    # Nothing is still to be written; and a few per cent of short steps take more rounds to tell.
    os.sync()
    told = json.loads(room.run(*BENCH, blob, max(rounds, STEPS), cwd=REPOSITORY).splitlines()[-1])
    group = Group("Index", f"{told['blob_bytes'] / 1e6:.0f} MB, {told['entries']} entries")
    for step, seconds in told["seconds"].items():
        group.row("one thread", step, "s", seconds)
    _program(room, group, name, rounds)
    size = 100 * told["index_bytes"] / told["blob_bytes"]
    thread = _more(told["seconds"], "inflating thread with", "inflating thread without")
    all_work = _more(told["seconds"], "pass with seek points", "pass without seek points")
    group.budget("index size", size)
    group.budget("index thread", thread)
    group.budget("index work", all_work)
    span = 1000 * m.median(told["seconds"]["200 random spans"]) / 200
    for cell in (f"{size:.2f} %", f"{thread:.1f} %", f"{all_work:.1f} %", f"{span:.2f} ms"):
        group.cell(cell)
    return group


def _program(room, group, name, rounds):
    """The whole program from a layer on the disk to its index, page cache warm."""
    walls, works = [], []
    for number in range(rounds):
        ours = Ours(room, room.dir / f"cache-{number}")
        wall, work = m.cpu_seconds(lambda ours=ours: ours.run("index", "build", name))
        walls.append(wall)
        works.append(work)
    group.row("layoutfs index build", "wall", "s", walls)
    group.row("layoutfs index build", "processor", "s", works)


def _more(seconds, one, other):
    """By how many per cent one step takes longer than another: the median of the rounds' ratios."""
    ratios = [a / b for a, b in zip(seconds[one], seconds[other])]
    return 100 * (m.median(ratios) - 1)
