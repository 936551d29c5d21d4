"""The first contact over a link of limited bandwidth and delay, and the floor that it stands on.

The floor of mounting is the time that the link takes for the layers, or that inflating them takes on all
processors, whichever is longer: nobody can have a plain layer's tree sooner.
"""

import json
import os
import shutil
import time

import first_contact
import image
import link
import measure as m
import pullers
from first_contact import OURS, PIGZ, PODMAN, UMOCI
from report import Group
from room import REPOSITORY

SIDES = [OURS, UMOCI, PODMAN, PIGZ]
DECODE = ("cargo", "bench", "--locked", "--bench", "decode", "--")


class Scene(first_contact.Scene):
    """The same scene, with a link before the registry."""

    def __init__(self, room, source, settings):
        super().__init__(room, source)
        self.layers = [(image.layout_of(source).blob(layer["digest"]), layer["size"])
                       for layer in image.layout_of(source).manifest()["layers"]]
        link.check(room, *settings)
        address, name = self.reference.split("/", 1)
        self.link = link.Link(room, address, *settings)
        self.reference = f"{self.link.address}/{name}"


def inflating(room, layers, rounds):
    """Seconds that inflating the layers takes with a processor each, by our own inflater in one thread,
    the longest first.
    """
    room.run(*DECODE[:-1], "--no-run", cwd=REPOSITORY)
    times = []
    for blob, _ in layers:
        told = json.loads(room.run(*DECODE, blob, rounds, "inflate", cwd=REPOSITORY).splitlines()[-1])
        times.append(m.median(told["seconds"]["inflate"]))
    free = [0.0] * os.cpu_count()
    for taken in sorted(times, reverse=True):
        free[free.index(min(free))] += taken
    return max(free)


def _group(settings, key, layer_mb):
    class Kind:
        __doc__ = f"First contact over {settings[0]} Mbit/s and {settings[1]} ms."

        @staticmethod
        def measure(room, rounds, tiny, say):
            """The rows of one link."""
            source = image.of_this_machine(room, layer_mb=10 if tiny else layer_mb)
            scene = Scene(room, source, settings)
            say("inflating alone")
            floor = {"the link alone": sum(size for _, size in scene.layers) / (settings[0] * 125_000),
                     "inflating alone": inflating(room, scene.layers, 1 if tiny else 3)}
            samples = {}
            for number, order in m.rounds(SIDES, 1 if tiny else rounds, say):
                _round(scene, number, order, samples)
            group = Group("First contact over a link",
                          f"{scene.blob_mb:.0f} MB, {settings[0]} Mbit/s, {settings[1]} ms")
            _tell(group, key, settings[0], floor, samples)
            return group
    return Kind


def _round(scene, number, order, samples):
    """As a round of first_contact."""
    for side in order:
        directory = scene.room.new(f"{SIDES.index(side)}-{number}")
        m.drop_caches()
        before, start = scene.link.bytes_down(), time.monotonic()
        tree = scene.pull(side, directory)
        here = time.monotonic()
        scene.read_all(tree)
        end = time.monotonic()
        values = {"first contact, cold": end - start, "of it until the tree is there": here - start,
                  "of it the read": end - here, "bytes": (scene.link.bytes_down() - before) / 1e6}
        for row, value in values.items():
            samples.setdefault(row, {}).setdefault(side, []).append(value)
        if side == OURS:
            scene.unmount(directory)
        if side == PODMAN:
            pullers.podman_end(scene.room, scene.reference, directory)
    for side in SIDES:
        shutil.rmtree(scene.room.new(f"{SIDES.index(side)}-{number}"))
    os.sync()
    time.sleep(first_contact.INODES_S)


def _tell(group, key, mbit, floor, samples):
    for what, taken in floor.items():
        group.row("floor", what, "s", [taken])
    median = {(row, side): group.row(row, side, "MB" if row == "bytes" else "s", values)
              for row, sides in samples.items() for side, values in sides.items()}
    by_floor = median["of it until the tree is there", OURS] / max(floor.values())
    group.budget(key, by_floor)
    group.cell(f"{by_floor:.2f}")
    whole = {side: median["first contact, cold", side] for side in SIDES}
    for side in SIDES[1:]:
        group.cell(group.versus(f"over {mbit} Mbit/s, {side}", whole[OURS], whole[side]))


GROUPS = {
    "link_1000": _group((1000, 10), "link 1000", 200),
    "link_100": _group((100, 30), "link 100", 80),
}
