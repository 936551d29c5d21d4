"""The images that are measured."""

import hashlib
import io
import itertools
import json
import os
import random
import subprocess
import tarfile
from pathlib import Path

from room import REPOSITORY, Failed

FIXTURES = Path(os.environ.get("BENCH_FIXTURES", REPOSITORY / "target/fixtures"))

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LARGE, SMALL = 1 << 20, 32 << 10


def of_this_machine(room, folders=("bin", "share", "lib"), layer_mb=200):
    """A layer for each folder of /usr: the file mix of a distribution. Returns `oci:DIR:TAG`.

    The content is this machine's, so absolute times of two machines do not compare; ratios do.
    """
    def layer(folder):
        return lambda tar: _pack(room, tar, _first_files(Path("/usr") / folder, layer_mb * 1_000_000))
    return _made(room, "image", [layer(folder) for folder in folders])


def of_files(room, name, wanted, total_mb, copies=1):
    """Three layers with files of /usr whose size is wanted, of so many MB before compression: the same
    files again in other directories where there are too few, and where copies are asked for.
    """
    layers, whole = 3, int(total_mb * 1_000_000)
    found = [(path, size) for path, size in _files(Path("/usr"))
             if wanted(size) and size <= whole // layers]
    parts, taken, copy = [[] for _ in range(layers)], 0, 0
    while taken < whole:
        for path, size in found:
            if taken >= whole:
                break
            parts[taken * layers // whole].append((copy, os.fsencode(path[1:])))
            taken += size
        copy += 1

    def layer(place, part):
        # No layer has a directory of another: whoever unpacks them at the same time makes each once.
        def write(tar):
            for again in range(copies):
                for number in sorted({number for number, _ in part}):
                    names = (path for copy, path in part if copy == number)
                    _pack(room, tar, names, f"layer{place}-{again}-{number}/")
        return write
    return _made(room, name, list(itertools.starmap(layer, enumerate(parts))))


def of_entries(room, name, entries, large_mb):
    """A layer of so many small files and directories, of our own making, and one of large files."""
    chance = random.Random(entries)
    words = " ".join(f"{chance.randrange(1 << 24):x}" for _ in range(40_000)).encode()

    def small(tar):
        with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as out:
            for number in range(entries):
                member = tarfile.TarInfo(f"many/{number // 2500:03}/{number // 50:05}/file-{number:06}")
                member.size = chance.randrange(8192)
                start = chance.randrange(len(words) - member.size)
                out.addfile(member, io.BytesIO(words[start:start + member.size]))

    def large(tar):
        found = [(path, size) for path, size in _files(Path("/usr/lib")) if size >= LARGE]
        sizes = itertools.accumulate(size for _, size in found)
        _pack(room, tar, (os.fsencode(path[1:]) for (path, _), sum_ in zip(found, sizes)
                          if sum_ < large_mb * 1_000_000))
    return _made(room, name, [small, large] if large_mb else [small])


def _made(room, name, layers):
    """An image of layers that functions write, compressed by umoci."""
    layout, tar = room.dir / name, room.dir / f"{name}.tar"
    image = f"{layout}:bench"
    room.run("umoci", "init", "--layout", layout)
    room.run("umoci", "new", "--image", image)
    for write in layers:
        write(tar)
        room.run("umoci", "raw", "add-layer", "--image", image, tar)
        tar.unlink()
    return f"oci:{image}"


def _pack(room, tar, names, prefix=""):
    """Appends files of this machine to an archive, below a prefix."""
    with room.log.open("a") as log:
        # GNU tar ends with 1 when a file changes meanwhile.
        subprocess.run(["tar", "-C", "/", "--null", "--no-recursion", f"--transform=flags=rSh;s,^,{prefix},",
                        "-T", "-", "-rf", tar], input=b"\0".join(names), stderr=log, check=False)


def _files(folder):
    """Regular files below a folder by name, with their sizes."""
    for directory, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(directory, name)
            if os.path.isfile(path) and not os.path.islink(path):
                yield path, os.path.getsize(path)


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
        return self.document(self.manifest_digest())

    def manifest_digest(self):
        """Of that manifest."""
        return self._manifests()[0]["digest"]

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
        manifest.setdefault("mediaType", MANIFEST)  # umoci leaves it out
        descriptor = self.put(json.dumps(manifest).encode())
        descriptor["mediaType"] = manifest["mediaType"]
        descriptor["annotations"] = {"org.opencontainers.image.ref.name": tag}
        (self.dir / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        index = {"schemaVersion": 2, "manifests": [descriptor]}
        (self.dir / "index.json").write_text(json.dumps(index))


def fill_holes(directory):
    """Makes the sparse files in the layers of a `dir:` image ordinary ones: SOCI's snapshotter does not
    mount a layer that has any, and Go's tar, which most layers are written with, makes none.
    """
    def replaced(name, content):
        (directory / name).unlink()
        name = hashlib.sha256(content).hexdigest()
        (directory / name).write_bytes(content)
        return name

    manifest = json.loads((directory / "manifest.json").read_text())
    old = manifest["config"]["digest"].split(":")[1]
    config = json.loads((directory / old).read_text())
    for number, layer in enumerate(manifest["layers"]):
        name = layer["digest"].split(":")[1]
        with tarfile.open(directory / name, "r:") as tar:
            if not any(member.issparse() for member in tar):
                continue
            content = _written_anew(tar)
        layer.update(digest=f"sha256:{replaced(name, content)}", size=len(content))
        config["rootfs"]["diff_ids"][number] = layer["digest"]
    content = json.dumps(config).encode()
    manifest["config"].update(digest=f"sha256:{replaced(old, content)}", size=len(content))
    (directory / "manifest.json").write_text(json.dumps(manifest))


def _written_anew(tar):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as written:
        for member in tar:
            content = tar.extractfile(member) if member.isreg() else None
            member.sparse = None
            member.pax_headers = {key: value for key, value in member.pax_headers.items()
                                  if not key.startswith("GNU.sparse.") and key not in ("path", "size")}
            if member.type == tarfile.GNUTYPE_SPARSE:
                member.type = tarfile.REGTYPE
            written.addfile(member, content)
    return out.getvalue()


def in_one_frame(room, layout, directory):
    """The image of a layout with each layer in one zstd frame, which nobody can enter but at its start."""
    converted, packed = Layout(directory), room.dir / "layer.zst"
    manifest = layout.manifest()
    config = layout.blob(manifest["config"]["digest"]).read_bytes()
    manifest["config"].update(converted.put(config))
    for layer in manifest["layers"]:
        room.run("sh", "-c", 'unpigz -c "$1" | zstd -q -f -o "$2"', "sh", layout.blob(layer["digest"]), packed)
        layer.update(converted.put(packed.read_bytes()))
        layer["mediaType"] = "application/vnd.oci.image.layer.v1.tar+zstd"
    packed.unlink()
    converted.put_image(manifest, "bench")


def layout_of(source):
    """Of `oci:DIR:TAG`."""
    return Layout(source.removeprefix("oci:").rsplit(":", 1)[0])
