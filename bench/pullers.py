"""Those who pull an image whole and unpack it: each makes a tree of files on this disk's ext4.

Settings are the best that they document: podman with the kernel's overlayfs as its storage driver, its
six copies at a time, and pigz, which it uses where it is installed; `tar` with all layers at a time into
one directory (right only where no layer removes or replaces anything, as in the images here).
"""

import json
import urllib.request

from image import MANIFEST
from room import mounts_below

EACH_LAYER = """set -e; tree=$1; shift
for url; do { curl -sSf "$url" | tar -x %s -f - -C "$tree"; } & done
for url; do wait -n; done"""


def umoci(room, reference, directory):
    """`skopeo copy`, `umoci unpack`; returns the tree."""
    layout = f"{directory}/layout:bench"
    room.run("skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{reference}", f"oci:{layout}")
    room.run("umoci", "unpack", "--image", layout, directory / "bundle")
    return directory / "bundle/rootfs"


def _podman(directory):
    return ("podman", "--root", directory / "root", "--runroot", directory / "run", "--storage-driver",
            "overlay")


def podman(room, reference, directory):
    """`podman pull`, `podman image mount`; returns the tree."""
    room.run(*_podman(directory), "pull", "-q", "--tls-verify=false", f"docker://{reference}")
    return room.run(*_podman(directory), "image", "mount", reference).strip()


def podman_end(room, reference, directory):
    """Unmounts it, and what podman has mounted for itself."""
    room.run(*_podman(directory), "image", "unmount", reference)
    for mountpoint in mounts_below(directory):
        room.run("umount", mountpoint)


def layer_urls(reference):
    """Where the registry has the layers of an image."""
    address, name = reference.split("/", 1)
    name, tag = name.rsplit(":", 1)
    place = f"http://{address}/v2/{name}"
    request = urllib.request.Request(f"{place}/manifests/{tag}", headers={"Accept": MANIFEST})
    with urllib.request.urlopen(request) as answer:
        manifest = json.load(answer)
    return [f"{place}/blobs/{layer['digest']}" for layer in manifest["layers"]]


def tar(room, reference, directory, decompressor="-z"):
    """`curl | tar xz` for each layer, all at a time; returns the tree."""
    tree = room.new(directory / "tree")
    room.run("bash", "-c", "set -o pipefail\n" + EACH_LAYER % decompressor, "bash", tree,
             *layer_urls(reference))
    return tree


def tar_pigz(room, reference, directory):
    """The same with pigz, which inflates faster than gzip."""
    return tar(room, reference, directory, "-I unpigz")
