"""A directory to measure in, with the mounts and processes that end with it."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
# One file system for all sides, which is what their disks are compared on.
PLACE = Path(os.environ.get("BENCH_DIR", REPOSITORY / "target/bench"))


class Failed(Exception):
    """A program failed, or cannot be had: the message says which, and its last words."""


class Room:
    """Used with `with`; whatever happens, nothing of it is left behind."""

    def __init__(self):
        PLACE.mkdir(parents=True, exist_ok=True)
        self.dir = Path(tempfile.mkdtemp(prefix="run.", dir=PLACE))
        self.log = self.dir / "log"
        self.processes = []

    def __enter__(self):
        # Interrupted by whatever means: `__exit__` runs.
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: sys.exit(130))
        return self

    def __exit__(self, *_):
        for mountpoint in mounts_below(self.dir):
            subprocess.run(["umount", "-l", mountpoint], check=False)
        for process in reversed(self.processes):
            stop(process)
        shutil.rmtree(self.dir, ignore_errors=True)

    def new(self, *names):
        """A directory of the room, made."""
        path = self.dir.joinpath(*names)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def run(self, *command, **options):
        """Runs a program to its end and returns what it printed; the rest is in the log."""
        command = [str(word) for word in command]
        with self.log.open("a") as log:
            told = log.tell()
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                                  text=True, check=False, **options)
        if done.returncode != 0:
            with self.log.open() as log:
                log.seek(told)
                said = "\n".join((done.stdout + log.read()).splitlines()[-5:])
            raise Failed(f"status {done.returncode}: {' '.join(command)}\n{said}")
        return done.stdout

    def start(self, *command, **options):
        """Starts a program that ends with the room at the latest."""
        with self.log.open("a") as log:
            usual = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            command = [str(word) for word in command]
            process = subprocess.Popen(command, text=True, **{**usual, **options})
        self.processes.append(process)
        return process


def stop(process):
    """Ends a program, asking first."""
    if process.stdin:
        process.stdin.close()
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def mounts_below(directory):
    """Mount points below a directory, those on top first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return [point for point in reversed(points) if Path(point).is_relative_to(directory)]


def needed(*programs):
    """Refuses to begin without these."""
    for program in programs:
        if not shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
            raise Failed(f"{program} is missing (make setup)")
