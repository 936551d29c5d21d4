"""The images that are measured."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

from room import REPOSITORY, Failed

FIXTURES = Path(os.environ.get("BENCH_FIXTURES", REPOSITORY / "target/fixtures"))


def of_this_machine(room, folders=("bin", "share", "lib"), layer_mb=200):
    """A layer for each folder of /usr: the file mix of a distribution. Returns `oci:DIR:TAG`.

    The content is this machine's, so absolute times of two machines do not compare; ratios do.
    """
    layout, tar = room.dir / "image", room.dir / "layer.tar"
    image = f"{layout}:bench"
    room.run("umoci", "init", "--layout", layout)
    room.run("umoci", "new", "--image", image)
    for folder in folders:
        names = b"\0".join(_first_files(Path("/usr") / folder, layer_mb * 1_000_000))
        with room.log.open("a") as log:
            # GNU tar ends with 1 when a file changes meanwhile.
            subprocess.run(["tar", "-C", "/", "--null", "--no-recursion", "-T", "-", "-cf", tar],
                           input=names, stderr=log, check=False)
        room.run("umoci", "raw", "add-layer", "--image", image, tar)
    tar.unlink()
    return f"oci:{image}"


def _first_files(folder, size_max):
    """Files and links below a folder by name, until they have the size."""
    found, size = [], 0
    for directory, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(directory, name)
            found.append((path, 0 if os.path.islink(path) else os.path.getsize(path)))
    for path, file_size in sorted(found):
        size += file_size
        if size > size_max:
            return
        yield os.fsencode(path[1:])


def debian():
    """The tests' images: the registry storage with `debian/run`, made by their script if need be."""
    script = REPOSITORY / "tests/fixtures/debian-image.sh"
    made = subprocess.run([script, FIXTURES], stdout=subprocess.PIPE, text=True, check=False)
    if made.returncode != 0:
        raise Failed(f"{script} failed")
    return Path(made.stdout.strip()) / "registry"


class Layout:
    """An image layout directory: what is needed of its documents."""

    def __init__(self, directory):
        self.dir = Path(directory)

    def blob(self, digest):
        """Where a blob is."""
        return self.dir / "blobs" / digest.replace(":", "/", 1)

    def document(self, digest):
        """A manifest or configuration."""
        return json.loads(self.blob(digest).read_text())

    def manifest(self):
        """The manifest of the only image."""
        return self.document(self._manifests()[0]["digest"])

    def _manifests(self):
        return json.loads((self.dir / "index.json").read_text())["manifests"]

    def layer_bytes(self):
        """Of all layers, as stored."""
        return sum(layer["size"] for layer in self.manifest()["layers"])

    def put(self, content):
        """Adds a blob; returns digest and size for its descriptor."""
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.blob(digest).parent.mkdir(parents=True, exist_ok=True)
        self.blob(digest).write_bytes(content)
        return {"digest": digest, "size": len(content)}

    def put_image(self, manifest, tag):
        """Makes a manifest the only image."""
        descriptor = self.put(json.dumps(manifest).encode())
        descriptor["mediaType"] = manifest["mediaType"]
        descriptor["annotations"] = {"org.opencontainers.image.ref.name": tag}
        (self.dir / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        index = {"schemaVersion": 2, "manifests": [descriptor]}
        (self.dir / "index.json").write_text(json.dumps(index))
