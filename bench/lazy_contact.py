"""The first contact, reading everything, of those who mount an image instead of unpacking it.

The same files in plain gzip layers and in eStargz ones; everybody begins with nothing here.
"""

import os
import time

import image
import link
import measure as m
import peers
from ours import Ours
from report import Group

PLAIN, ESTARGZ = "bench/plain:latest", "bench/estargz:latest"
OURS, OURS_ESTARGZ = "layoutfs", "layoutfs, eStargz"
STORE, RATARMOUNT = "stargz-store, eStargz", "skopeo copy + ratarmount"
WALK, ALL = "until a walk is over", "until everything was read"


class Scene:
    """A registry with both images."""

    def __init__(self, room, tiny):
        self.room = room
        source = image.of_this_machine(room, layer_mb=10 if tiny else 80)
        plain = image.layout_of(source)
        self.estargz = peers.to_estargz(room, plain, [], room.dir / "estargz-image")
        self.ratarmount = peers.ratarmount(room)
        registry = link.Registry(room, room.new("registry"))
        registry.push(room, source, PLAIN)
        registry.push(room, f"oci:{self.estargz.dir}:bench", ESTARGZ)
        self.address, self.mb = registry.address, plain.layer_bytes() / 1e6
        self.sides = {OURS: self._ours(PLAIN), OURS_ESTARGZ: self._ours(ESTARGZ), STORE: self._store,
                      RATARMOUNT: self._ratarmount}

    def _ours(self, name):
        def mount(directory, mountpoint):
            ours = Ours(self.room, directory / "cache")
            start = time.monotonic()
            ours.mount(f"docker://{self.address}/{name}", mountpoint)
            return start, lambda: ours.unmount(mountpoint)
        return mount

    def _store(self, directory, mountpoint):
        # Its process serves all images of a machine, and so was there before this one.
        store = peers.StargzStore(self.room, directory)
        m.drop_caches()
        start = time.monotonic()
        store.mount(f"{self.address}/{ESTARGZ}", self.estargz.manifest()["layers"], mountpoint)

        def end():
            self.room.run("umount", mountpoint)
            store.stop()
        return start, end

    def _ratarmount(self, directory, mountpoint):
        start = time.monotonic()
        self.room.run("skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{self.address}/{PLAIN}",
                      f"oci:{directory}/layout:bench")
        layout = image.Layout(directory / "layout")
        layers = [layout.blob(layer["digest"]) for layer in layout.manifest()["layers"]]
        self.room.run(self.ratarmount, "--use-backend", "rapidgzip", "-P", os.cpu_count(), "--index-folders",
                      self.room.new(directory / "index"), *layers, mountpoint)
        return start, lambda: self.room.run(self.ratarmount, "-u", mountpoint)


def measure(room, rounds, tiny, say):
    """The group's rows."""
    scene, samples = Scene(room, tiny), {}
    for number, order in m.rounds(list(scene.sides), 1 if tiny else rounds, say):
        for side in order:
            directory = room.new(f"{list(scene.sides).index(side)}-{number}")
            mountpoint = room.new(directory / "mnt")
            m.drop_caches()
            start, end = scene.sides[side](directory, mountpoint)
            room.run("find", mountpoint, "-printf", "%p %s %T@\\n")
            walked = time.monotonic()
            room.run("sh", "-c", 'tar -C "$1" -cf - . | cat >/dev/null', "sh", mountpoint)
            samples.setdefault((ALL, side), []).append(time.monotonic() - start)
            samples.setdefault((WALK, side), []).append(walked - start)
            end()
    group = Group("First contact of lazy peers", f"{scene.mb:.0f} MB")
    median = {(row, side): group.row(row, side, "s", samples[row, side])
              for row in (WALK, ALL) for side in scene.sides}
    for row in (WALK, ALL):
        for ours, peer in ((OURS_ESTARGZ, STORE), (OURS, RATARMOUNT)):
            group.cell(group.versus(f"{row}, {peer}", median[row, ours], median[row, peer]))
    return group
