"""First contact with an image, second read, read after a remount: against pull and unpack.

The read is `tar -cf - . | cat`: names, attributes, every byte. (GNU tar reads nothing when it writes to
/dev/null itself.)
"""

import contextlib
import os
import shutil
import subprocess
import time

import image
import link
import measure as m
import pullers
from ours import Ours
from report import Group
from room import Failed

OURS = "layoutfs"
UMOCI, PODMAN = "skopeo copy + umoci unpack", "podman pull"
TAR, PIGZ = "curl | tar xz", "curl | tar -I unpigz"
PULLERS = {UMOCI: pullers.umoci, PODMAN: pullers.podman, TAR: pullers.tar, PIGZ: pullers.tar_pigz}
SIDES = [OURS, *PULLERS]
# Inodes that were freed are not used again for that long by ext4, which searches for others.
INODES_S = 6
LISTS = 5
# So many second reads of each side in a round: they are short, and vary.
WARM = 3

FINGERPRINT = """cd "$1"
{ find . ! -path . -printf '%p %y %m %U %G %l\\n'; find . ! -type d -printf '%p %Ts %n\\n'; } | LC_ALL=C sort
find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum"""


class Scene:
    """The registry with the image."""

    def __init__(self, room, source):
        self.room = room
        registry = link.Registry(room, room.new("registry"))
        registry.push(room, source, "bench/image:latest")
        self.reference = f"{registry.address}/bench/image:latest"
        self.blob_mb = sum(path.stat().st_size for path in (room.dir / "registry").rglob("data")) / 1e6

    def read_all(self, tree):
        """Every byte once."""
        self.room.run("sh", "-c", 'tar -C "$1" -cf - . | cat >/dev/null', "sh", tree)

    def ours(self, directory):
        """Nothing here, a sparse layout, a mount; returns the tree."""
        ours = Ours(self.room, directory / "cache")
        ours.run("sparse", self.reference, "--to", directory / "sparse")
        ours.mount(f"oci:{directory}/sparse", self.room.new(directory / "mnt"))
        return directory / "mnt"

    def pull(self, side, directory):
        """Nothing here, a tree."""
        if side == OURS:
            return self.ours(directory)
        return PULLERS[side](self.room, self.reference, directory)

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

    def compare(self, trees):
        """All have the same names, attributes and content, or there is nothing to compare."""
        prints = {side: subprocess.run(["sh", "-c", FINGERPRINT, "sh", tree], stdout=subprocess.PIPE,
                                       check=True).stdout for side, tree in trees.items()}
        for side, found in prints.items():
            if found != prints[OURS]:
                raise Failed(f"the trees of {OURS} and {side} differ: nothing to compare")

    @contextlib.contextmanager
    def overlay(self, directory):
        """A writable tree over ours, as a container has it."""
        merged = self.room.new(directory / "merged")
        upper, work = self.room.new(directory / "upper"), self.room.new(directory / "work")
        options = "index=off,redirect_dir=off,metacopy=off,xino=off"
        self.room.run("mount", "-t", "overlay", "overlay", "-o",
                      f"lowerdir={directory}/mnt,upperdir={upper},workdir={work},{options}", merged)
        try:
            yield merged
        finally:
            self.room.run("umount", merged)


def _round(scene, number, order, record):
    """What each side makes stays until the end of the round: ext4 takes long to reuse inodes that were
    just freed, and the next side would pay for the deletion.
    """
    directory = {side: scene.room.new(f"{SIDES.index(side)}-{number}") for side in SIDES}
    tree = {}
    for side in order:
        m.drop_caches()
        start = time.monotonic()
        tree[side] = scene.pull(side, directory[side])
        here = time.monotonic()
        scene.read_all(tree[side])
        end = time.monotonic()
        record("first contact, cold", side, end - start)
        record("of it until the tree is there", side, here - start)
        record("of it the read", side, end - here)
    if number == 1:
        scene.compare(tree)
    _reads(scene, directory[OURS], {side: tree[side] for side in order if side in (OURS, UMOCI)}, record)
    _lists(scene, directory[OURS], record)
    pullers.podman_end(scene.room, scene.reference, directory[PODMAN])
    for place in directory.values():
        shutil.rmtree(place)
    os.sync()
    time.sleep(INODES_S)


def _reads(scene, ours, tree, record):
    """Everything read once more: warm, under overlayfs, after a remount."""
    # What the last puller made is not written while somebody reads; and the second side's dropping of
    # caches took those of the first: both are warmed again.
    os.sync()
    for side in tree:
        scene.read_all(tree[side])
    for side in [*tree] * WARM:
        counted = Ours(scene.room, ours / "cache").messages(ours / "mnt") if side == OURS else 0
        record("second read, warm", side, m.seconds(lambda side=side: scene.read_all(tree[side])))
        if side == OURS:
            counted = Ours(scene.room, ours / "cache").messages(ours / "mnt") - counted
            record("FUSE messages of the second read", side, counted)
    with scene.overlay(ours) as merged:
        scene.read_all(merged)
        record("second read under overlayfs, warm", OURS, m.seconds(lambda: scene.read_all(merged)))
    scene.unmount(ours)
    again = {OURS: lambda: scene.ours_again(ours), UMOCI: lambda: scene.read_all(tree[UMOCI])}
    for side in tree:
        m.drop_caches()
        record("remount, cold, offline", side, m.seconds(again[side]))
    record("requests of the remount", OURS, Ours(scene.room, ours / "cache").requests(ours / "mnt"))
    scene.unmount(ours)


def _lists(scene, ours, record):
    """A known image until `ls -l` has answered: warm, and after nothing was in memory."""
    for _ in range(LISTS):
        record("mount + ls -l, warm", OURS, 1000 * m.seconds(lambda: scene.ours_list(ours)))
        record("requests of mount + ls -l", OURS, Ours(scene.room, ours / "cache").requests(ours / "mnt"))
        scene.unmount(ours)
    m.drop_caches()
    record("mount + ls -l, cold", OURS, 1000 * m.seconds(lambda: scene.ours_list(ours)))
    scene.unmount(ours)


UNITS = {"mount + ls -l, warm": "ms", "mount + ls -l, cold": "ms", "requests of mount + ls -l": "",
         "requests of the remount": "", "FUSE messages of the second read": ""}


def measure(room, rounds, tiny, say):
    """The group's rows, of the usual image."""
    source = os.environ.get("BENCH_IMAGE") or image.of_this_machine(room, layer_mb=10 if tiny else 200)
    return measure_image(room, source, "", 1 if tiny else rounds, say)


def measure_image(room, source, kind, rounds, say):
    """The group's rows of one image."""
    scene = Scene(room, source)
    samples = {}

    def record(row, side, value):
        samples.setdefault(row, {}).setdefault(side, []).append(value)
    for number, order in m.rounds(SIDES, rounds, say):
        _round(scene, number, order, record)
    group = Group("First contact", f"{scene.blob_mb:.0f} MB{kind}")
    median = {(row, side): group.row(row, side, UNITS.get(row, "s"), values)
              for row, sides in samples.items() for side, values in sides.items()}
    _tell(group, f" of {group.image}" if kind else "", median)
    return group


def _tell(group, of, median):
    first = {side: median["first contact, cold", side] for side in SIDES}
    group.budget("first by umoci", first[OURS] / first[UMOCI])
    group.budget("first by podman", first[OURS] / first[PODMAN])
    group.budget("first by tar", first[OURS] / first[TAR])
    group.budget("first by unpigz", first[OURS] / first[PIGZ])
    for peer in PULLERS:
        group.cell(group.versus(f"first contact{of}, {peer}", first[OURS], first[peer]))
    second, again = "second read, warm", "remount, cold, offline"
    overlay = median["second read under overlayfs, warm", OURS] / median[second, UMOCI]
    by_ext4 = {row: median[row, OURS] / median[row, UMOCI] for row in (second, again)}
    for row in (second, again):
        group.versus(f"{row}{of}, ext4", median[row, OURS], median[row, UMOCI])
    group.budget("second", by_ext4[second])
    group.budget("second messages", median["FUSE messages of the second read", OURS])
    group.budget("second overlay", overlay)
    group.budget("again", by_ext4[again])
    group.budget("again requests", median["requests of the remount", OURS])
    group.budget("list", median["mount + ls -l, warm", OURS])
    group.budget("list requests", median["requests of mount + ls -l", OURS])
    for value in (by_ext4[second], overlay, by_ext4[again]):
        group.cell(f"{value:.2f}")
    warm, cold = (median[f"mount + ls -l, {state}", OURS] for state in ("warm", "cold"))
    group.cell(f"{warm:.0f} / {cold:.0f} ms")
