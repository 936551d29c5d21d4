"""The budgets that design asks for: one place for their limits, and the table that a run ends with."""

from dataclasses import dataclass

from room import REPOSITORY


@dataclass(frozen=True)
class Limit:
    """At most so much; `row` is what the budget is of, `what` tells which part."""
    row: str
    what: str
    limit: float
    unit: str = "x"


LIST = "mount of a known image"
FIRST = "first contact"
LINK = "first contact over a link"
READ = "reading everything again"
LAZY = "lazy start"
EXTEND = "extend, trivial RUN, shadow mode"
INDEX = "index"
MEMORY = "daemon memory, 100,000 entries"
GROWTH = "image 10 x larger"

LIMITS = {
    "list": Limit(LIST, "until the first ls -l answers", 50, "ms"),
    "list requests": Limit(LIST, "requests to the registry", 0, ""),
    "first by umoci": Limit(FIRST, "by skopeo copy + umoci unpack", 0.35),
    "first by podman": Limit(FIRST, "by podman pull", 0.35),
    "first by tar": Limit(FIRST, "by curl | tar xz per layer", 0.8),
    "first by unpigz": Limit(FIRST, "by the same with unpigz", 0.8),
    "link 1000": Limit(LINK, "1 Gbit/s, 10 ms: mounting by its floor", 1.15),
    "link 100": Limit(LINK, "100 Mbit/s, 30 ms: mounting by its floor", 1.15),
    "second": Limit(READ, "second read, warm, by ext4", 1.3),
    "second messages": Limit(READ, "second read: FUSE messages", 0, ""),
    "second overlay": Limit(READ, "second read under overlayfs, by ext4", 1.6),
    "again": Limit(READ, "remount, cold, by ext4 cold", 1.0),
    "again requests": Limit(READ, "remount: requests to the registry", 0, ""),
    "decoded": Limit(READ, "first read, decoded and local, by ext4", 3),
    "lazy bytes": Limit(LAZY, "bytes of the image, index cached", 10, "%"),
    "lazy bytes estargz": Limit(LAZY, "bytes of the image, eStargz", 10, "%"),
    "lazy time": Limit(LAZY, "index cached, by the faster pull", 0.25),
    "lazy time estargz": Limit(LAZY, "eStargz, by the faster pull", 0.25),
    "lazy by stargz": Limit(LAZY, "eStargz, by stargz-store", 1),
    "extend bytes": Limit(EXTEND, "layer bytes, indexed", 10, "%"),
    "extend time": Limit(EXTEND, "by pull, unpack, plain extender", 0.25),
    "index size": Limit(INDEX, "by the blob", 0.6, "%"),
    "index thread": Limit(INDEX, "time that it adds to the inflating thread", 5, "%"),
    "index work": Limit(INDEX, "work that it adds, on whichever thread", 5, "%"),
    "random 4 KiB": Limit(INDEX, "a random 4 KiB read, median, in page cache", 1, "ms"),
    "memory": Limit(MEMORY, "resident at most", 96, "MiB"),
    "memory flat": Limit(MEMORY, "last quarter of the data by the second", 1.1),
    "growth time": Limit(GROWTH, "time", 10.5),
    "growth bytes": Limit(GROWTH, "bytes", 10.5),
    "growth memory": Limit(GROWTH, "memory", 2),
}


@dataclass(frozen=True)
class Kept:
    """A budget, and what was measured."""
    key: str
    value: float
    image: str

    @property
    def limit(self):
        """What it has to keep to."""
        return LIMITS[self.key]

    @property
    def met(self):
        """It does."""
        return self.value <= self.limit.limit

    def text(self):
        """A line for people."""
        limit = self.limit
        return (f"  {limit.what:<42} {_number(self.value) + ' ' + limit.unit:>10}  "
                f"<= {limit.limit:g} {limit.unit:<4} {'met' if self.met else 'NOT met':<8} {self.image}")


def _number(value):
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def table(kept):
    """All budgets in their order, with what a run says of each."""
    lines, row = ["Budgets"], None
    for key, limit in LIMITS.items():
        if limit.row != row:
            row = limit.row
            lines.append(row)
        mine = [one for one in kept if one.key == key]
        lines += [one.text() for one in mine] or [f"  {limit.what:<42} {'':>10}  not measured in this run"]
    met = sum(one.met for one in kept)
    lines.append(f"{met} of {len(kept)} met")
    return "\n".join(lines)


def extension(lines):
    """What lines of `extension.sh` say of a trivial RUN: (key, value, image, commit), of the last one."""
    kept = []
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 12 and cells[4] == "trivial":
            kept = [("extend bytes", float(cells[9].rstrip(" %")), cells[3], cells[1]),
                    ("extend time", float(cells[5]), cells[3], cells[1])]
    return kept


def recorded_extension():
    """The same of results.md, which is not of this run."""
    lines = (REPOSITORY / "bench/results.md").read_text().splitlines()
    return [Kept(key, value, f"{image}; recorded at {commit}")
            for key, value, image, commit in extension(lines)]
