"""Memory of the daemon: 100,000 entries, many GB passing; and an image ten times as large."""

import threading
import time
from pathlib import Path

import image
import link
import measure as m
import plot
from ours import Ours
from report import Group

ENTRIES, LARGE_MB, PASSED_GB = 100_000, 900, 10
SMALL_MB, TIMES = 120, 10
SAMPLE_S = 0.05
MIB = 1 << 20


class Resident:
    """The resident memory of a process, sampled until the end: (seconds, MiB)."""

    def __init__(self, pid):
        self.pid, self.samples, self.start = pid, [], time.monotonic()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def _sample(self):
        while not self.over.wait(SAMPLE_S):
            self.samples.append((time.monotonic() - self.start, status(self.pid, "VmRSS")))


def status(pid, what):
    """MiB of a process: VmRSS, VmHWM (its highest), RssAnon."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} has no {what}")


class Scene:
    """A registry with images."""

    def __init__(self, room, images):
        self.room = room
        self.registry = link.Registry(room, room.new("registry"))
        self.bytes = {name: image.layout_of(source).layer_bytes() for name, source in images.items()}
        for name, source in images.items():
            self.registry.push(room, source, f"bench/{name}:latest")

    def mounted(self, name, directory):
        """The first contact: (ours, tree); nothing was here."""
        ours = Ours(self.room, directory / "cache")
        ours.run("sparse", f"{self.registry.address}/bench/{name}:latest", "--to", directory / "sparse")
        ours.mount(f"oci:{directory}/sparse", self.room.new(directory / "mnt"))
        return ours, directory / "mnt"

    def read_all(self, tree):
        """Every byte once."""
        self.room.run("sh", "-c", 'tar -C "$1" -cf - . | cat >/dev/null', "sh", tree)


def measure(room, rounds, tiny, say):
    """The group's rows."""
    entries, large_mb, passed_gb = (2000, 20, 0.2) if tiny else (ENTRIES, LARGE_MB, PASSED_GB)
    small_mb = 6 if tiny else SMALL_MB
    say("making the images")
    mixed = lambda size: size < 4 * image.LARGE
    scene = Scene(room, {
        "entries": image.of_entries(room, "entries", entries, large_mb),
        "one": image.of_files(room, "one", mixed, small_mb),
        "ten": image.of_files(room, "ten", mixed, small_mb, TIMES),
    })
    group = Group("Memory and growth", f"{entries} entries")
    _memory(scene, group, passed_gb, say)
    _growth(scene, group, 1 if tiny else rounds, say)
    return group


def _memory(scene, group, passed_gb, say):
    """One daemon: its first contact, and scans until so much has passed."""
    ours, tree = scene.mounted("entries", scene.room.new("memory"))
    pid, passed, ends = ours.status(tree)["pid"], 0, []
    mounted = [status(pid, "VmHWM")]
    with Resident(pid) as resident:
        while passed < passed_gb * 1e9:
            m.drop_caches()
            scene.read_all(tree)
            passed = ours.status(tree)["bytes_read"]
            ends.append(time.monotonic() - resident.start)
            say(f"{passed / 1e9:.1f} GB have passed")
    highest, anonymous = status(pid, "VmHWM"), status(pid, "RssAnon")
    ours.unmount(tree)
    scans = list(zip([0, *ends], ends))
    in_scan = [[mib for at, mib in resident.samples if start <= at < end] for start, end in scans]
    typical = [m.median(values) for values in in_scan if values]
    group.row("highest until the tree answers", "layoutfs", "MiB", mounted)
    group.row("resident, median of each scan", "layoutfs", "MiB", typical)
    group.row("resident, highest of each scan", "layoutfs", "MiB", [max(values) for values in in_scan])
    group.row("anonymous at the end", "layoutfs", "MiB", [anonymous])
    group.row("passed", "layoutfs", "GB", [passed / 1e9])
    late = typical[-max(1, len(typical) // 4):]
    group.budget("memory", highest)
    group.budget("memory flat", m.median(late) / typical[min(1, len(typical) - 1)])
    group.cell(f"{highest:.0f} MiB")
    group.cell(f"{m.median(late) / typical[min(1, len(typical) - 1)]:.2f}")
    step = max(1, len(resident.samples) // 400)
    group.plots["memory.svg"] = plot.lines(
        f"Resident memory of the daemon, {group.image}, {passed / 1e9:.0f} GB passing", "s", "MiB",
        [("resident", resident.samples[::step], plot.OURS)], ("96 MiB", 96))


def _growth(scene, group, rounds, say):
    """The same files once and ten times, in as many layers."""
    samples = {}
    for number, order in m.rounds(["one", "ten"], rounds, say):
        for name in order:
            m.drop_caches()
            start = time.monotonic()
            ours, tree = scene.mounted(name, scene.room.new(f"{name}-{number}"))
            scene.read_all(tree)
            taken = time.monotonic() - start
            told = ours.status(tree)
            kept = sum(path.lstat().st_blocks * 512 for path in ours.cache.rglob("*"))
            values = {("time", "s"): taken, ("fetched", "MB"): told["bytes_fetched"] / 1e6,
                      ("on disk", "MB"): kept / 1e6, ("highest resident", "MiB"): status(told["pid"], "VmHWM")}
            for key, value in values.items():
                samples.setdefault(key, {}).setdefault(name, []).append(value)
            ours.unmount(tree)
            ours.run("cache", "prune")
    factor = {}
    for (what, unit), sides in samples.items():
        one, ten = (group.row(f"{what}, {name}", "layoutfs", unit, sides[name]) for name in ("one", "ten"))
        factor[what] = ten / one
    size = scene.bytes["ten"] / scene.bytes["one"]
    group.budget("growth time", factor["time"] * TIMES / size)
    group.budget("growth bytes", max(factor["fetched"], factor["on disk"]) * TIMES / size)
    group.budget("growth memory", factor["highest resident"])
    for what in factor:
        group.cell(f"{factor[what]:.2f}")
