"""Random reads of a compressed layer that is here, through a mount: layoutfs and ratarmount.

Everybody has its index, is mounted anew, and has decoded nothing. The layer's file is in the page cache, or
nothing is. All read the same places, and the same bytes come, or the benchmark ends.
"""

import itertools
import os
import random
import time

import image
import measure as m
import peers
import plot
from ours import Ours
from report import Group, ratio

SIZES = {"4 KiB": 4 << 10, "64 KiB": 64 << 10}
COLD, CACHED = "cold", "in page cache"
OURS = "layoutfs"


class Scene:
    """A layer, alone as a file and in an image layout; each side's index of it, made."""

    def __init__(self, room, tiny):
        self.room = room
        self.image = image.of_this_machine(room, ("lib",), 20 if tiny else 400)
        layout = image.layout_of(self.image)
        self.layer = room.dir / "layer.tar.gz"
        os.link(layout.blob(layout.manifest()["layers"][0]["digest"]), self.layer)
        self.ratarmount = peers.ratarmount(room)
        self.ours = Ours(room, room.dir / "cache")
        self.ours.run("index", "build", self.image)
        self.mountpoint = room.new("mnt")
        self.sides = {
            OURS: (self._mount_ours, lambda: self.ours.unmount(self.mountpoint)),
            "ratarmount, rapidgzip": self._ratarmount("rapidgzip"),
            "ratarmount, indexed_gzip": self._ratarmount("indexed_gzip"),
        }
        for mount, unmount in self.sides.values():
            mount()
            unmount()

    def _mount_ours(self):
        self.ours.mount(self.image, self.mountpoint, "--offline")

    def _ratarmount(self, backend):
        index = self.room.dir / f"{backend}.sqlite"
        # Seek points as far apart as ours: its default is 16 MiB, which is slower.
        options = ("--use-backend", backend, "--gzip-seek-point-spacing", "1", "--index-file", index,
                   "-P", os.cpu_count())

        def mount():
            self.room.run(self.ratarmount, *options, self.layer, self.mountpoint)
        return mount, lambda: self.room.run(self.ratarmount, "-u", self.mountpoint)

    def places(self, size, count, seed):
        """Files and offsets in them, from the tree of one side."""
        self._mount_ours()
        found = []
        for directory, folders, files in os.walk(self.mountpoint):
            folders.sort()
            found += [os.path.join(directory, name) for name in sorted(files)]
        sizes = [(path, os.lstat(path).st_size) for path in found if not os.path.islink(path)]
        self.ours.unmount(self.mountpoint)
        chance = random.Random(seed)
        large = [(path, whole) for path, whole in sizes if whole >= size]
        # By size, so that every byte is as likely: small files lie together, and few spans have them all.
        chosen = chance.choices(large, [whole for _, whole in large], k=count)
        return [(path, chance.randrange(whole - size + 1)) for path, whole in chosen]


def _into_page_cache(file):
    with file.open("rb") as stored:
        while stored.read(1 << 20):
            pass


def _read(places, size):
    """Milliseconds of each read, from open to close, of a path that was looked up before; the bytes."""
    taken, read = [], []
    for path, offset in places:
        os.stat(path)
        start = time.monotonic()
        file = os.open(path, os.O_RDONLY)
        read.append(os.pread(file, size, offset))
        os.close(file)
        taken.append(1000 * (time.monotonic() - start))
    return taken, read


def measure(room, rounds, tiny, say):
    """The group's rows."""
    scene = Scene(room, tiny)
    size_mb = scene.layer.stat().st_size / 1e6
    group = Group("Random reads", f"{size_mb:.0f} MB")
    samples = {(size, state, side): []
               for size in SIZES for state in (COLD, CACHED) for side in scene.sides}
    for number, order in m.rounds(list(scene.sides), 1 if tiny else rounds, say):
        for label, size in SIZES.items():
            places, expected = scene.places(size, 10 if tiny else 60, f"{label} {number}"), None
            for state, side in itertools.product((COLD, CACHED), order):
                mount, unmount = scene.sides[side]
                m.drop_caches()
                mount()
                if state == COLD:
                    m.drop_caches()
                else:
                    _into_page_cache(scene.layer)
                taken, read = _read(places, size)
                unmount()
                samples[label, state, side] += taken
                if read != (expected or read):
                    raise ValueError(f"{side} reads other bytes than the side before it")
                expected = read
    _tell(group, scene, samples, size_mb)
    return group


def _tell(group, scene, samples, size_mb):
    median, late = {}, {}
    for key, values in samples.items():
        label, state, side = key
        median[key] = group.row(f"{label} {state}, median", side, "ms", values)
        late[key] = m.percentile(values, 99)
        group.row(f"{label} {state}, p99", side, "ms", [late[key]])
    group.budget("random 4 KiB", median["4 KiB", CACHED, OURS])
    for state, label in itertools.product((COLD, CACHED), SIZES):
        ours = (label, state, OURS)
        group.cell(f"{median[ours]:.2f} / {late[ours]:.1f} ms")
        for side in list(scene.sides)[1:]:
            theirs = (label, state, side)
            by_side = group.versus(f"random {label} {state}, {side}", median[ours], median[theirs])
            group.cell(f"{by_side} / {ratio(late[ours], late[theirs])}")
    bars = [(f"{side}, {label}, {what}", values[label, COLD, side], side == OURS)
            for label in SIZES for what, values in (("median", median), ("p99", late))
            for side in scene.sides]
    group.plots["random-reads.svg"] = plot.bars(
        f"Random reads of a {size_mb:.0f} MB layer through a mount, index known, caches cold", "ms", bars)
