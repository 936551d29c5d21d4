"""From nothing here until python3 has imported a module, over a link of 1 Gbit/s and 10 ms.

The link is in front of the registry for all sides. Each begins with empty directories and ends when
the command has; what it takes in between, in bytes, is counted on the link.
"""

import image
import link
import measure as m
import peers
import plot
import pullers
from image import Layout
from ours import Ours
from report import Group, number, ratio

COMMAND = ("/usr/bin/python3", "-c", 'import json; print(json.dumps(["started"]))')
LINK = (1000, 10)
PLAIN, ESTARGZ = "bench/plain:latest", "bench/estargz:latest"
SOCI = "SOCI's snapshotter"


class Scene:
    """Registry, link, images, and what is known of them beforehand."""

    def __init__(self, room, say):
        self.room = room
        link.check(room, *LINK)
        self.plain = _fixture(room)
        say("converting to eStargz")
        unpacked = room.new("wanted")
        room.run("umoci", "unpack", "--image", f"{self.plain.dir}:bench", unpacked / "bundle")
        wanted = sorted(peers.opened(room, unpacked / "bundle/rootfs", COMMAND))
        self.estargz = peers.to_estargz(room, self.plain, wanted, room.dir / "estargz-image")
        registry = link.Registry(room, room.new("registry"))
        registry.push(room, f"oci:{self.plain.dir}:bench", PLAIN)
        registry.push(room, f"oci:{self.estargz.dir}:bench", ESTARGZ)
        self.soci_index = peers.soci_index(room, self.plain, f"{registry.address}/{PLAIN.split(':')[0]}")
        self.link = link.Link(room, registry.address, *LINK)
        self.indexed = Ours(room, room.dir / "indexed")
        self._learn()

    def _learn(self):
        """The indexes in a cache, and in the registry; the trace of a start."""
        image_name = f"docker://{self.reference(PLAIN)}"
        self.indexed.index(image_name)
        self.artifact = self.indexed.run("index", "push", image_name).strip()
        self.trace = self.room.dir / "trace"
        mountpoint = self.room.new("learn")
        self.indexed.mount(image_name, mountpoint, "--record", self.trace)
        self.start(mountpoint)
        self.indexed.unmount(mountpoint)

    def reference(self, name):
        """Through the link."""
        return f"{self.link.address}/{name}"

    def start(self, rootfs):
        """What the whole is for."""
        said = self.room.run("chroot", rootfs, *COMMAND)
        if said != '["started"]\n':
            raise ValueError(f"python3 said {said}")


def _fixture(room):
    """The tests' Debian with python3 and gcc, in the form that every tool reads: gzip, as pushed by
    podman and skopeo. (What the registry has is of several codecs.)
    """
    registry = link.Registry(room, image.debian(), "fixtures")
    unpacked, target = room.dir / "unpacked", room.dir / "plain"
    room.run("skopeo", "copy", "-q", "--dest-decompress", "--src-tls-verify=false",
             f"docker://{registry.address}/debian/run:everyday", f"dir:{unpacked}")
    image.fill_holes(unpacked)
    room.run("skopeo", "copy", "-q", f"dir:{unpacked}", f"oci:{target}:bench")
    return Layout(target)


def _ours(scene, name, indexed, options):
    def prepare(directory):
        if indexed:
            scene.indexed.forget_layers()
        return scene.indexed if indexed else Ours(scene.room, directory / "cache")

    def measure(directory, ours):
        mountpoint = scene.room.new(directory / "mnt")
        ours.mount(f"docker://{scene.reference(name)}", mountpoint, *options())
        scene.start(mountpoint)
        return lambda: ours.unmount(mountpoint)
    return prepare, measure


def _umoci(scene):
    def measure(directory, _):
        scene.start(pullers.umoci(scene.room, scene.reference(PLAIN), directory))
    return lambda _: None, measure


def _podman(scene):
    def measure(directory, _):
        scene.start(pullers.podman(scene.room, scene.reference(PLAIN), directory))
        return lambda: pullers.podman_end(scene.room, scene.reference(PLAIN), directory)
    return lambda _: None, measure


def _served(scene, start, mount):
    """By a process that serves all images of a machine, and so was there before this one."""
    def measure(directory, process):
        mountpoint = scene.room.new(directory / "mnt")
        mount(process, mountpoint)
        scene.start(mountpoint)

        def end():
            scene.room.run("umount", mountpoint)
            process.stop()
        return end
    return lambda directory: start(scene.room, directory), measure


def _stargz(scene):
    def mount(store, mountpoint):
        store.mount(scene.reference(ESTARGZ), scene.estargz.manifest()["layers"], mountpoint)
    return _served(scene, peers.StargzStore, mount)


def _soci(scene):
    def mount(snapshotter, mountpoint):
        snapshotter.mount(scene.reference(PLAIN), scene.plain, scene.soci_index, mountpoint)
    return _served(scene, peers.Soci, mount)


def _sides(scene):
    def repository():
        return f"{scene.link.address}/{PLAIN.split(':')[0]}@{scene.artifact}"
    return {
        "layoutfs, index cached": _ours(scene, PLAIN, True, lambda: ()),
        "layoutfs, index and trace": _ours(scene, PLAIN, True, lambda: ("--prefetch", scene.trace)),
        "layoutfs, index in registry": _ours(scene, PLAIN, False, lambda: ("--index", repository())),
        "layoutfs, nothing known": _ours(scene, PLAIN, False, lambda: ()),
        "layoutfs, eStargz": _ours(scene, ESTARGZ, False, lambda: ()),
        "stargz-store, eStargz": _stargz(scene),
        SOCI: _soci(scene),
        "skopeo copy + umoci unpack": _umoci(scene),
        "podman pull": _podman(scene),
    }


def measure(room, rounds, tiny, say):
    """The group's rows."""
    scene = Scene(room, say)
    sides = _sides(scene)
    times, sizes = {name: [] for name in sides}, {name: [] for name in sides}
    for count, order in m.rounds(list(sides), 1 if tiny else rounds, say):
        for name in order:
            prepare, work = sides[name]
            directory = room.new(f"{list(sides).index(name)}-{count}")
            state, ends = prepare(directory), []
            m.drop_caches()
            before = scene.link.bytes_down()
            times[name].append(m.seconds(lambda: ends.append(work(directory, state))))
            sizes[name].append((scene.link.bytes_down() - before) / 1e6)
            if ends[0]:
                ends[0]()
    return _group(scene, times, sizes)


def _group(scene, times, sizes):
    plain_mb, estargz_mb = scene.plain.layer_bytes() / 1e6, scene.estargz.layer_bytes() / 1e6
    group = Group("Lazy start", f"{plain_mb:.0f} MB")
    time = {name: group.row("time", name, "s", values) for name, values in times.items()}
    size = {name: group.row("bytes on the link", name, "MB", values) for name, values in sizes.items()}
    pulling = min(time["skopeo copy + umoci unpack"], time["podman pull"])
    ours, estargz = "layoutfs, index cached", "layoutfs, eStargz"
    store = "stargz-store, eStargz"
    group.budget("lazy bytes", 100 * size[ours] / plain_mb)
    group.budget("lazy bytes estargz", 100 * size[estargz] / estargz_mb)
    group.budget("lazy time", time[ours] / pulling)
    group.budget("lazy time estargz", time[estargz] / pulling)
    group.budget("lazy by stargz", time[estargz] / time[store])
    for name in list(time)[:5]:
        group.cell(f"{number(time[name])} s, {number(size[name])} MB")
    for peer in ("skopeo copy + umoci unpack", "podman pull"):
        group.cell(group.versus(f"lazy start, {peer}", time[ours], time[peer]))
    by_store = group.versus(f"lazy start, {store}", time[estargz], time[store])
    group.cell(f"{by_store}, {ratio(size[estargz], size[store])}")
    # It has nothing of the image either, and its index is in the registry too.
    in_registry = "layoutfs, index in registry"
    by_soci = group.versus(f"lazy start, {SOCI}", time[in_registry], time[SOCI])
    group.cell(f"{by_soci}, {ratio(size[in_registry], size[SOCI])}")
    is_ours = lambda name: name.startswith("layoutfs")
    title = f"Start of python3 from a {plain_mb:.0f} MB image, 1 Gbit/s, 10 ms: "
    group.plots["lazy-start.svg"] = plot.bars(
        title + "time", "s", [(name, value, is_ours(name)) for name, value in time.items()],
        ("a quarter of pulling", pulling / 4))
    group.plots["lazy-start-bytes.svg"] = plot.bars(
        title + "bytes", "MB", [(name, value, is_ours(name)) for name, value in size.items()],
        ("a tenth of the image", plain_mb / 10))
    return group
