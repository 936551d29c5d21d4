"""layoutfs, as a user would call it."""

import json
import os
from pathlib import Path

from room import REPOSITORY, Failed

PROGRAM = Path(os.environ.get("LAYOUTFS", REPOSITORY / "target/release/layoutfs")).resolve()


class Ours:
    """Commands with one cache directory."""

    def __init__(self, room, cache):
        if not PROGRAM.exists():
            raise Failed(f"{PROGRAM} is missing (make build)")
        self.room = room
        self.cache = cache

    def run(self, *arguments):
        """Runs a command; returns what it printed."""
        return self.room.run(PROGRAM, *arguments, "--cache-dir", self.cache)

    def mount(self, image, mountpoint, *options):
        """Returns when the tree answers."""
        self.run("mount", image, mountpoint, *options)

    def unmount(self, mountpoint):
        """Ends the mount and its process."""
        self.run("unmount", mountpoint)

    def status(self, mountpoint):
        """What a mount tells about itself."""
        told = json.loads(self.run("status", mountpoint, "--json"))
        return told[0] if isinstance(told, list) else told

    def messages(self, mountpoint):
        """FUSE messages so far that a mount has answered."""
        return sum(self.status(mountpoint)["messages"].values())

    def requests(self, mountpoint):
        """Requests so far that a mount has sent to a registry."""
        return self.status(mountpoint)["requests"]

    def index(self, image):
        """Makes the indexes of an image's layers, and leaves nothing else in the cache."""
        self.run("index", "build", image)
        self.forget_layers()

    def forget_layers(self):
        """What is left is what a machine has that knows the image and has no byte of it."""
        self.run("cache", "prune")

    def layers(self, image):
        """What `index ls` tells of each layer."""
        return json.loads(self.run("index", "ls", image, "--json"))
