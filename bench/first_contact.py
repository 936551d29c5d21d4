"""First contact with an image, second read, read after a remount: against pull and unpack.

The read is `tar -cf - . | cat`: names, attributes, every byte. (GNU tar reads nothing when it writes to
/dev/null itself.)
"""

import os
import subprocess

import image
import link
import measure as m
from ours import Ours
from report import Group, ratio
from room import Failed

SIDES = ["ours", "theirs"]
ROWS = {"first": "first contact, cold", "second": "second read, warm", "again": "remount, cold, offline"}
BUDGETS = {"first": 0.35, "second": 1.3, "again": 1.0}
LIST_MS_MAX = 50
NAMES = {"ours": "layoutfs", "theirs": "skopeo copy + umoci unpack"}

FINGERPRINT = """cd "$1"
{ find . -printf '%p %y %m %U %G %l\\n'; find . ! -type d -printf '%p %Ts %n\\n'; } | LC_ALL=C sort
find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum"""


class Scene:
    """The registry with the image."""

    def __init__(self, room, tiny):
        self.room = room
        source = os.environ.get("BENCH_IMAGE") or image.of_this_machine(room, layer_mb=10 if tiny else 200)
        registry = link.Registry(room, room.new("registry"))
        registry.push(room, source, "bench/image:latest")
        self.reference = f"{registry.address}/bench/image:latest"

    def read_all(self, tree):
        """Every byte once."""
        self.room.run("sh", "-c", 'tar -C "$1" -cf - . | cat >/dev/null', "sh", tree)

    def ours(self, directory):
        """Nothing here, a sparse layout, a mount, every byte."""
        ours = Ours(self.room, directory / "cache")
        ours.run("sparse", self.reference, "--to", directory / "sparse")
        ours.mount(f"oci:{directory}/sparse", directory / "mnt")
        self.read_all(directory / "mnt")

    def ours_again(self, directory):
        """A second mount, without the registry."""
        ours = Ours(self.room, directory / "cache")
        ours.mount(f"oci:{directory}/sparse", directory / "mnt", "--offline")
        self.read_all(directory / "mnt")

    def ours_list(self, directory):
        """A mount, until it answers."""
        Ours(self.room, directory / "cache").mount(f"oci:{directory}/sparse", directory / "mnt")
        self.room.run("ls", "-l", directory / "mnt")

    def unmount(self, directory):
        """Ours."""
        Ours(self.room, directory / "cache").unmount(directory / "mnt")

    def theirs(self, directory):
        """Nothing here, a layout, an unpacked tree, every byte."""
        layout = f"{directory}/layout:bench"
        self.room.run("skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{self.reference}",
                      f"oci:{layout}")
        self.room.run("umoci", "unpack", "--image", layout, directory / "bundle")
        self.read_all(directory / "bundle/rootfs")

    def compare(self, *trees):
        """Both have the same names, attributes and content, or there is nothing to compare."""
        prints = [subprocess.run(["sh", "-c", FINGERPRINT, "sh", tree], stdout=subprocess.PIPE, check=True)
                  .stdout for tree in trees]
        if prints[0] != prints[1]:
            raise Failed("the two trees differ: nothing to compare")


def _round(scene, number, order, record):
    """What each side makes stays until the end: ext4 takes long to reuse inodes that were just freed, and
    the next round would pay for the deletion.
    """
    directory = {side: scene.room.new(f"{side}{number}") for side in SIDES}
    tree = {"ours": scene.room.new(f"ours{number}", "mnt"), "theirs": directory["theirs"] / "bundle/rootfs"}
    for side in order:
        m.drop_caches()
        record("first", side, m.seconds(lambda side=side: getattr(scene, side)(directory[side])))
    # The second side's dropping of caches took those of the first: both are warmed again.
    for side in SIDES:
        scene.read_all(tree[side])
    for side in order:
        record("second", side, m.seconds(lambda side=side: scene.read_all(tree[side])))
    if number == 1:
        scene.compare(*tree.values())
    scene.unmount(directory["ours"])
    again = {"ours": lambda: scene.ours_again(directory["ours"]),
             "theirs": lambda: scene.read_all(tree["theirs"])}
    for side in order:
        m.drop_caches()
        record("again", side, m.seconds(again[side]))
    scene.unmount(directory["ours"])
    record("list", "ours", 1000 * m.seconds(lambda: scene.ours_list(directory["ours"])))
    scene.unmount(directory["ours"])


def measure(room, rounds, tiny, say):
    """The group's rows."""
    scene = Scene(room, tiny)
    samples = {}

    def record(row, side, value):
        samples.setdefault((row, side), []).append(value)
    for number, order in m.rounds(SIDES, 1 if tiny else rounds, say):
        _round(scene, number, order, record)
    size = sum(path.stat().st_size for path in (room.dir / "registry").rglob("data"))
    group = Group("First contact", f"{size / 1e6:.0f} MB")
    for row, what in ROWS.items():
        ours, theirs = (group.row(what, NAMES[side], "s", samples[row, side]) for side in SIDES)
        group.budget(what, ours / theirs, BUDGETS[row])
        group.cell(ratio(ours, theirs))
    until = group.row("mount + ls -l", NAMES["ours"], "ms", samples["list", "ours"])
    group.budget("mount of a known image + ls -l", until, LIST_MS_MAX, "ms")
    group.cell(f"{until:.0f} ms")
    return group
