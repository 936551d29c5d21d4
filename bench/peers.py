"""Programs that layoutfs is compared with, installed where the benchmark keeps them."""

import base64
import hashlib
import json
import os
import shutil
import subprocess

from image import Layout
from room import PLACE, REPOSITORY, Failed, stop

RATARMOUNT = ("ratarmount==1.3.0", "rapidgzip==0.15.2", "indexed_gzip==1.10.3")
STARGZ_VERSION = "v0.19.1"
STARGZ_MODULE = "github.com/containerd/stargz-snapshotter"
SOCI_VERSION = "v0.16.1"
SOCI_MODULE = "github.com/awslabs/soci-snapshotter"


def _installed(name, key, install):
    """The directory of a peer: made by a function the first time, and when its key changes."""
    directory = PLACE / "peers" / name
    mark = directory / "key"
    key = hashlib.sha256(repr(key).encode()).hexdigest()
    if not (mark.exists() and mark.read_text() == key):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        install(directory)
        mark.write_text(key)
    return directory


def ratarmount(room):
    """The program, in an environment of its own."""
    def install(directory):
        room.run("python3", "-m", "venv", directory)
        room.run(directory / "bin/pip", "install", "-q", *RATARMOUNT)
    return _installed("ratarmount", RATARMOUNT, install) / "bin/ratarmount"


def _of_go(room, name, version, modules):
    """NAME.go, built in a module of its own with these of one version."""
    source = REPOSITORY / f"bench/{name}.go"

    def install(directory):
        if not shutil.which("go"):
            raise Failed(f"go is missing: {name}.go is built with it")
        shutil.copy(source, directory / "main.go")
        room.run("go", "mod", "init", name, cwd=directory)
        for module in modules:
            room.run("go", "get", f"{module}@{version}", cwd=directory)
        room.run("go", "mod", "tidy", cwd=directory)
        room.run("go", "build", "-o", name, ".", cwd=directory)
    return _installed(name, (version, source.read_text()), install) / name


def stargz(room):
    """The program of stargz.go."""
    return _of_go(room, "stargz", STARGZ_VERSION, (STARGZ_MODULE, f"{STARGZ_MODULE}/estargz"))


def soci(room):
    """The program of soci.go. A part of it is in C, and takes zlib as a static library."""
    return _of_go(room, "soci", SOCI_VERSION, (SOCI_MODULE,))


def to_estargz(room, layout, wanted, directory):
    """The image of a layout with eStargz layers, in which the wanted files come first."""
    program, converted = stargz(room), Layout(directory)
    files = room.dir / "wanted.txt"
    files.write_text("\n".join(wanted))
    manifest = layout.manifest()
    config = layout.document(manifest["config"]["digest"])
    for number, layer in enumerate(manifest["layers"]):
        out = room.dir / "layer.estargz"
        told = json.loads(room.run(program, "convert", layout.blob(layer["digest"]), files, out))
        layer.update(converted.put(out.read_bytes()))
        layer["annotations"] = {
            "containerd.io/snapshot/stargz/toc.digest": told["toc"],
            "io.containers.estargz.uncompressed-size": str(told["uncompressed"]),
        }
        config["rootfs"]["diff_ids"][number] = told["diff_id"]
        out.unlink()
    manifest["config"].update(converted.put(json.dumps(config).encode()))
    converted.put_image(manifest, "bench")
    return converted


class StargzStore:
    """stargz-snapshotter's store, mounted and empty."""

    def __init__(self, room, root):
        self.room = room
        self.mountpoint = root / "store"
        self.mountpoint.mkdir(parents=True)
        self.process = room.start(stargz(room), "store", root / "state", self.mountpoint,
                                  stdout=subprocess.PIPE)
        if self.process.stdout.readline() != "ready\n":
            raise Failed("stargz-store does not start")

    def mount(self, reference, layers, mountpoint):
        """The image as one tree: the kernel's overlay over its layers, as Podman would make it."""
        name = base64.b64encode(os.fsencode(reference)).decode()
        diffs = [str(self.mountpoint / name / layer["annotations"][
            "containerd.io/snapshot/stargz/toc.digest"] / "diff") for layer in layers]
        # The option takes a page at most, and colons separate: the layers get short names.
        short = self.mountpoint.with_name("layers")
        short.mkdir()
        for number, diff in enumerate(diffs):
            (short / str(number)).symlink_to(diff)
        lower = ":".join(str(number) for number in reversed(range(len(diffs))))
        self.room.run("mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={lower}", mountpoint,
                      cwd=short)

    def stop(self):
        """Unmounts and ends."""
        stop(self.process)


def soci_index(room, layout, repository):
    """Puts SOCI's index of a layout's image into its repository. Returns the index's digest."""
    return room.run(soci(room), "index", layout.dir, repository, room.new("soci-index")).split()[-1]


class Soci:
    """SOCI's snapshotter, with nothing in it."""

    def __init__(self, room, root):
        self.room = room
        self.process = room.start(soci(room), "serve", root / "soci", stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE)
        self._expect("ready")

    def _expect(self, word):
        if self.process.stdout.readline() != f"{word}\n":
            raise Failed(f"SOCI's snapshotter is not {word}: {self.room.log.read_text()[-500:]}")

    def mount(self, reference, layout, index, mountpoint):
        """The image of a layout, which is in a registry as `reference`, as one tree."""
        manifest = layout.manifest()
        config = layout.document(manifest["config"]["digest"])
        wanted = {"reference": reference, "manifest": layout.manifest_digest(), "index": index,
                  "layers": manifest["layers"], "diff_ids": config["rootfs"]["diff_ids"],
                  "mountpoint": str(mountpoint)}
        self.process.stdin.write(json.dumps(wanted) + "\n")
        self.process.stdin.flush()
        self._expect("mounted")

    def stop(self):
        """Unmounts the layers, and ends."""
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            raise Failed("SOCI's snapshotter does not end") from None


def opened(room, rootfs, command):
    """The files below a root filesystem that a command in it opens, by the times of access."""
    for directory, _, files in os.walk(rootfs):
        for name in files:
            path = os.path.join(directory, name)
            # With `relatime` a read changes a time that is before the change of the file.
            if not os.path.islink(path):
                os.utime(path, (0, os.lstat(path).st_mtime))
    room.run("chroot", rootfs, *command)
    for directory, _, files in os.walk(rootfs):
        for name in files:
            path = os.path.join(directory, name)
            if not os.path.islink(path) and os.lstat(path).st_atime > 0:
                yield os.path.relpath(path, rootfs)
