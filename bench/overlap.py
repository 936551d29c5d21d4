"""One first contact over 1 Gbit/s and 10 ms, watched: what is on the link, decoded and read, by when."""

import json
import socket
import subprocess
import threading
import time
from pathlib import Path

import image
import measure as m
import plot
from link_contact import Scene
from ours import Ours
from report import Group
from room import Failed

LINK = (1000, 10)
EVERY_S = 0.02
WITHIN_S = 120


class Watch:
    """Counters of a mount and of its link, sampled: (seconds, link, decoded, files readable)."""

    def __init__(self, scene, ours, mountpoint, before):
        self.scene, self.ours, self.mountpoint, self.before = scene, ours, mountpoint, before
        self.start, self.samples, self.over = time.monotonic(), [], threading.Event()
        self.socket = None

    def status(self):
        """By the daemon's socket, which costs less than a program; None before there is one."""
        try:
            if self.socket is None:
                self.socket = Path(self.ours.status(self.mountpoint)["log"]).with_suffix(".sock")
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(self.socket))
                return json.loads(b"".join(iter(lambda: client.recv(1 << 16), b"")))
        except (Failed, OSError, IndexError):
            return None

    def sample(self):
        """Until it is over."""
        while not self.over.wait(EVERY_S):
            told = self.status() or {"bytes_passed": 0, "ready": False}
            self.samples.append((time.monotonic() - self.start, self.scene.link.bytes_down() - self.before,
                                 told["bytes_passed"], told["ready"], told.get("bytes_read", 0)))


def _contact(scene, directory):
    """Nothing here, everything read; returns the samples, and the seconds of it."""
    ours, mountpoint = Ours(scene.room, directory / "cache"), scene.room.new(directory / "mnt")
    m.drop_caches()
    watch = Watch(scene, ours, mountpoint, scene.link.bytes_down())
    thread = threading.Thread(target=watch.sample, daemon=True)
    thread.start()
    ours.run("sparse", scene.reference, "--to", directory / "sparse")
    # Returns at once: whoever reads waits.
    ours.mount(f"oci:{directory}/sparse", mountpoint, "--no-wait")
    scene.read_all(mountpoint)
    end = time.monotonic() - watch.start
    watch.over.set()
    thread.join(WITHIN_S)
    counted = subprocess.run(["find", mountpoint, "-type", "f"], stdout=subprocess.PIPE, check=True)
    ours.unmount(mountpoint)
    return watch.samples, end, counted.stdout.count(b"\n")


def measure(room, rounds, tiny, say):
    """The group's rows: of one contact, the last of three."""
    scene = Scene(room, image.of_this_machine(room, layer_mb=10 if tiny else 200), LINK)
    for number in range(1 if tiny else 3):
        samples, end, files = _contact(scene, room.new(f"contact-{number}"))
    whole = sum(size for _, size in scene.layers)
    group = Group("Overlap", f"{scene.blob_mb:.0f} MB, {files} files")
    columns = {"bytes on the link": 1, "bytes decoded": 2, "content read": 4}
    most = max(sample[4] for sample in samples) or 1
    drawn = {name: [(sample[0], 100 * sample[at] / (most if at == 4 else whole)) for sample in samples]
             for name, at in columns.items()}
    drawn["files readable"] = [(sample[0], 100.0 if sample[3] else 0.0) for sample in samples]
    for name, points in drawn.items():
        reached = [at for at, percent in points if percent >= 99]
        group.cell(f"{group.row('99 % of it are there', name, 's', [reached[0] if reached else end]):.2f} s")
    group.cell(f"{group.row('everything was read', 'layoutfs', 's', [end]):.2f} s")
    colors = dict(zip(drawn, (plot.LIMIT, plot.OURS, plot.THEIRS, plot.INK)))
    group.plots["overlap.svg"] = plot.lines(
        f"First contact with {group.image}, over 1 Gbit/s, 10 ms", "s", "%",
        [(name, points, colors[name]) for name, points in drawn.items()])
    return group
