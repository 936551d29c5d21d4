#!/usr/bin/env -S python3 -B
"""Measures layoutfs against what people use instead, in one run: see README.md in this folder.

    bench.py [--rounds N] [--tiny] [--no-record] [GROUP...]

Environment: BENCH_DIR (target/bench: where all sides put their files), BENCH_FIXTURES
(target/fixtures: the tests' image), LAYOUTFS (target/release/layoutfs), BENCH_IMAGE (oci:DIR:TAG, for
first_contact).
"""

import argparse
import os
import sys
import time

import budget
import extension
import first_contact
import growth
import index_cost
import lazy_contact
import lazy_start
import link_contact
import overlap
import random_reads
import reads
import sizes
from report import Report
from room import Failed, Room, needed

GROUPS = {
    "first_contact": first_contact,
    "index_cost": index_cost,
    "growth": growth,
    "lazy_contact": lazy_contact,
    "reads": reads,
    "random_reads": random_reads,
    "lazy_start": lazy_start,
    **link_contact.GROUPS,
    "overlap": overlap,
    **sizes.GROUPS,
    "extension": extension,
}


def say(text):
    """What goes on, for people."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def main():
    options = arguments()
    if os.geteuid() != 0:
        raise Failed("needs root: drops caches, mounts, unpacks with owners")
    needed("docker-registry", "skopeo", "umoci", "podman", "chroot", "tar", "mount", "curl", "unpigz")
    if options.tiny or not options.record:
        os.environ["BENCH_RECORD"] = "no"
    report = Report()
    for name in options.groups or GROUPS:
        say(f"{name}: {GROUPS[name].__doc__.splitlines()[0]}")
        with Room() as room:
            began = time.monotonic()
            group = GROUPS[name].measure(room, options.rounds, options.tiny, say)
        report.groups.append(group)
        say(f"{name}: took {time.monotonic() - began:.0f} s")
        print(group.text(), flush=True)
        if not options.tiny:
            report.keep(name, group)
        if options.record and not options.tiny:
            report.publish(group)
    if options.record and not options.tiny:
        report.publish_ratios()
    print(budget.table(report.kept()))
    print(f"every sample: {report.save()}")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=", ".join(GROUPS))
    parser.add_argument("--rounds", type=int, default=5, help="the median counts [default: 5]")
    parser.add_argument("--tiny", action="store_true", help="small inputs: does it work at all?")
    parser.add_argument("--no-record", dest="record", action="store_false",
                        help="leaves results.md and the plots alone")
    options = parser.parse_args()
    for name in options.groups:
        if name not in GROUPS:
            parser.error(f"no group {name}: there are {', '.join(GROUPS)}")
    return options


if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        sys.exit(f"bench: {failure}")
