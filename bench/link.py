"""A registry on loopback, and a link in front of it that is as slow as a real one."""

import re
import threading
import socket
import subprocess
import time

from room import REPOSITORY, Failed

RELAY = REPOSITORY / "target/release/examples/relay"
CHECKED_BYTES = 20_000_000


class Registry:
    """Debian's docker-registry over a directory, on a free port; `address` is where."""

    def __init__(self, room, storage, name="registry"):
        settings = room.dir / f"{name}.yml"
        said = room.dir / f"{name}.log"
        settings.write_text(
            "version: 0.1\nlog: {accesslog: {disabled: true}}\nhttp: {addr: '127.0.0.1:0'}\n"
            f"storage: {{filesystem: {{rootdirectory: '{storage}'}}}}\n")
        with said.open("w") as log:
            self.process = room.start("docker-registry", "serve", settings, stderr=log)
        self.address = _listening(said)

    def push(self, room, image, name):
        """Puts `oci:DIR:TAG` there under a name, as it is."""
        room.run("skopeo", "copy", "-q", "--preserve-digests", "--dest-tls-verify=false", image,
                 f"docker://{self.address}/{name}")


def _listening(log):
    """Waits until a registry has said where."""
    for _ in range(200):
        found = re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text())
        if found:
            return found[1]
        time.sleep(0.05)
    raise Failed(f"docker-registry does not start: {log.read_text()[-500:]}")


class Link:
    """What relay.rs simulates, in front of a server; `address` is where it begins."""

    def __init__(self, room, server, mbit_per_s, round_trip_ms):
        if not RELAY.exists():
            raise Failed(f"{RELAY} is missing (make bench builds it)")
        self.process = room.start(RELAY, server, mbit_per_s, round_trip_ms / 2,
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.address = f"127.0.0.1:{int(self.process.stdout.readline())}"

    def bytes_down(self):
        """Bytes that the server has sent, headers and all."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline().split()[1])


def check(room, mbit_per_s, round_trip_ms):
    """The relay does what it says, or nothing behind it is worth measuring."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_echo_sizes, args=(listener,), daemon=True).start()
        address = "127.0.0.1:{}".format(listener.getsockname()[1])
        link = Link(room, address, mbit_per_s, round_trip_ms)
        host, port = link.address.split(":")
        with socket.create_connection((host, int(port))) as client:
            trips = sorted(_ask(client, 1) for _ in range(9))
            rate = CHECKED_BYTES * 8e-6 / _ask(client, CHECKED_BYTES)
    trip = trips[len(trips) // 2] * 1000
    if not (0.8 < rate / mbit_per_s < 1.05 and 0.95 < trip / round_trip_ms < 1.3):
        raise Failed(f"the link of {mbit_per_s} Mbit/s, {round_trip_ms} ms has {rate:.0f}, {trip:.1f}")
    return {"mbit_per_s": rate, "round_trip_ms": trip}


def _echo_sizes(listener):
    connection = listener.accept()[0]
    while size := connection.recv(8):
        connection.sendall(bytes(int.from_bytes(size, "big")))


def _ask(client, size):
    start = time.monotonic()
    client.sendall(size.to_bytes(8, "big"))
    while size > 0:
        size -= len(client.recv(1 << 20))
    return time.monotonic() - start
