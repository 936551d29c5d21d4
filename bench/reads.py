"""Reads of what is here: a walk, everything from decoded layers, a large blob through the layout view.

All sides have what they know of the image before; ext4 has umoci's tree, ratarmount its indexes.
"""

import os
import subprocess

import image
import measure as m
import peers
import pullers
from first_contact import Scene as Registry
from ours import Ours
from report import Group

OURS, EXT4, RATARMOUNT = "layoutfs", "ext4", "ratarmount, rapidgzip"
WALK = "walk, cold"
READ, DECODED = "everything, cold", "first read of everything, decoded, warm"
BLOB, BLOB_AGAIN = "large blob, cold", "large blob, warm"


class Scene(Registry):
    """The image by its registry, its tree, and its layers in one zstd frame each."""

    def __init__(self, room, tiny):
        super().__init__(room, image.of_this_machine(room, layer_mb=10 if tiny else 200))
        gzip = image.layout_of(f"oci:{room.dir}/image:bench")
        self.layers = [gzip.blob(layer["digest"]) for layer in gzip.manifest()["layers"]]
        self.tree = pullers.umoci(room, self.reference, room.new("tree"))
        self.zstd = Ours(room, room.dir / "zstd-cache")
        image.in_one_frame(room, gzip, room.dir / "zstd")
        self.known = Ours(room, room.dir / "cache")
        self.known.run("sparse", self.reference, "--to", room.dir / "sparse")
        self.ratarmount = peers.ratarmount(room)
        self.mountpoint = room.new("mnt")
        self.sides = {
            OURS: (lambda: self.known.mount(f"oci:{room.dir}/sparse", self.mountpoint),
                   lambda: self.known.unmount(self.mountpoint)),
            EXT4: (lambda: room.run("mount", "--bind", self.tree, self.mountpoint),
                   lambda: room.run("umount", self.mountpoint)),
            RATARMOUNT: (self._ratarmount,
                         lambda: room.run(self.ratarmount, "-u", self.mountpoint)),
        }
        for mount, unmount in self.sides.values():
            mount()
            self.read_all(self.mountpoint)
            unmount()
        self.decoded_first()

    def _ratarmount(self):
        self.room.run(self.ratarmount, "--use-backend", "rapidgzip", "--gzip-seek-point-spacing", "1",
                      "--index-folders", self.room.new("ratarmount"), "-P", os.cpu_count(), *self.layers,
                      self.mountpoint)

    def walk(self):
        """Every name and its attributes."""
        self.room.run("find", self.mountpoint, "-printf", "%p %s %T@\\n")

    def decoded_first(self):
        """Seconds of the first read of a mount whose layers are decoded files."""
        self.zstd.mount(f"oci:{self.room.dir}/zstd:bench", self.mountpoint, "--offline")
        taken = m.seconds(lambda: self.read_all(self.mountpoint))
        self.zstd.unmount(self.mountpoint)
        return taken

    def blobs(self, record, order):
        """The largest layer as a file: of the layout view, and of the disk."""
        largest = max(self.layers, key=lambda blob: blob.stat().st_size)
        self.known.mount(f"oci:{self.room.dir}/sparse", self.mountpoint, "--view", "layout", "--offline")
        path = {OURS: self.mountpoint / "blobs/sha256" / largest.name, EXT4: largest}
        for side in order:
            for row, cold in ((BLOB, True), (BLOB_AGAIN, False)):
                if cold:
                    m.drop_caches()
                record(row, side, 1000 * m.seconds(lambda side=side: _cat(path[side])))
        self.known.unmount(self.mountpoint)


def _cat(path):
    subprocess.run(["cat", path], stdout=subprocess.DEVNULL, check=True)


def _round(scene, order, record):
    for side in order:
        mount, unmount = scene.sides[side]
        for row, work in ((WALK, scene.walk), (READ, lambda: scene.read_all(scene.mountpoint))):
            mount()
            m.drop_caches()
            record(row, side, m.seconds(work))
            unmount()
    scene.read_all(scene.tree)
    scene.decoded_first()
    for side in order:
        if side != RATARMOUNT:
            taken = scene.decoded_first() if side == OURS else m.seconds(lambda: scene.read_all(scene.tree))
            record(DECODED, side, taken)
    scene.blobs(record, [side for side in order if side != RATARMOUNT])


def measure(room, rounds, tiny, say):
    """The group's rows."""
    scene, samples = Scene(room, tiny), {}

    def record(row, side, value):
        samples.setdefault(row, {}).setdefault(side, []).append(value)
    for _, order in m.rounds(list(scene.sides), 1 if tiny else rounds, say):
        _round(scene, order, record)
    group = Group("Reads", f"{scene.blob_mb:.0f} MB")
    median = {(row, side): group.row(row, side, "ms" if "blob" in row else "s", values)
              for row, sides in samples.items() for side, values in sides.items()}
    group.budget("decoded", median[DECODED, OURS] / median[DECODED, EXT4])
    for row, peer in ((DECODED, EXT4), (WALK, EXT4), (WALK, RATARMOUNT), (READ, RATARMOUNT), (BLOB, EXT4),
                      (BLOB_AGAIN, EXT4)):
        group.cell(group.versus(f"{row}, {peer}", median[row, OURS], median[row, peer]))
    return group
