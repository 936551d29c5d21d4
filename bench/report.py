"""What was measured, as a table, as JSON, and as a line of results.md."""

import datetime
import json
import os
import platform
import subprocess
from pathlib import Path

import budget
import measure
import plot
from ours import PROGRAM
from room import PLACE, REPOSITORY

# The last measurement of each group.
KEPT = PLACE / "groups"


class Group:
    """Rows that are measured together, on one image."""

    def __init__(self, heading, image):
        # Of the table in results.md.
        self.heading, self.image = heading, image
        self.rows, self.cells, self.budgets, self.ratios, self.plots = [], [], [], [], {}

    def row(self, what, side, unit, values):
        """Samples of one kind. Returns their median."""
        middle = measure.median(values)
        self.rows.append({"what": what, "side": side, "unit": unit, "median": middle,
                          "low": min(values), "high": max(values), "values": values})
        return middle

    def cell(self, text):
        """The next column of the line in results.md."""
        self.cells.append(text)

    def budget(self, key, value):
        """What was measured of one of `budget.LIMITS`."""
        self.budgets.append(budget.Kept(key, value, self.image))

    def versus(self, what, ours, theirs):
        """A bar of the plot of ratios; returns it as results.md has it."""
        self.ratios.append((what, ours / theirs))
        return ratio(ours, theirs)

    def text(self):
        """For people."""
        lines = [f"{self.heading}: {self.image}"]
        for row in self.rows:
            spread = f"[{number(row['low'])}..{number(row['high'])}]"
            lines.append(f"  {row['what']:<34} {row['side']:<32} {number(row['median']):>9} "
                         f"{row['unit']:<4} {spread}")
        return "\n".join([*lines, *(kept.text() for kept in self.budgets)])


def number(value):
    """Three digits that mean something."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def ratio(ours, theirs):
    """As results.md has it."""
    return f"{ours / theirs:.2f}"


class Report:
    """Where and when, and the groups."""

    def __init__(self):
        load = os.getloadavg()[0]
        kernel = platform.release().split("-")[0]
        self.machine = f"{os.cpu_count()} x {_processor()}, Linux {kernel}, load {load:.2f}"
        self.commit = _commit()
        self.date = datetime.date.today().isoformat()
        self.groups, self.names = [], set()

    def save(self):
        """Everything, each sample of it, in one file; returns where."""
        groups = [{"heading": group.heading, "image": group.image, "rows": group.rows}
                  for group in self.groups]
        budgets = [{"key": kept.key, "row": kept.limit.row, "what": kept.limit.what, "value": kept.value,
                    "limit": kept.limit.limit, "unit": kept.limit.unit, "met": kept.met,
                    "image": kept.image} for kept in self.kept()]
        told = {"date": self.date, "commit": self.commit, "machine": self.machine, "groups": groups,
                "budgets": budgets}
        moment = datetime.datetime.now().strftime("%Y%m%dT%H%M%S")
        path = PLACE / f"bench-{moment}.json"
        path.write_text(json.dumps(told, indent=1) + "\n")
        return path

    def kept(self):
        """The budgets of all groups. What this run has not measured is of the last one that has, or, for
        the extender, of results.md.
        """
        kept = [kept for group in self.groups for kept in group.budgets]
        for earlier in self._earlier():
            kept += [budget.Kept(key, value, f"{image}; measured at {earlier['commit']}")
                     for key, value, image in earlier["budgets"]]
        is_there = any(one.limit.row == budget.EXTEND for one in kept)
        return kept + ([] if is_there else budget.recorded_extension())

    def keep(self, name, group):
        """For the table of a later run that does not measure this group."""
        self.names.add(name)
        told = {"name": name, "commit": self.commit, "ratios": group.ratios,
                "budgets": [(kept.key, kept.value, kept.image) for kept in group.budgets]}
        KEPT.mkdir(parents=True, exist_ok=True)
        (KEPT / f"{name}.json").write_text(json.dumps(told))

    def _earlier(self):
        """Groups that this run has not measured."""
        told = [json.loads(path.read_text()) for path in sorted(KEPT.glob("*.json"))]
        return [group for group in told if group["name"] not in self.names]

    def publish_ratios(self):
        """The plot of ratios to all peers."""
        ratios = [one for group in self.groups for one in group.ratios]
        ratios += [one for group in self._earlier() for one in group["ratios"]]
        if ratios:
            drawn = plot.bars("layoutfs by each peer: shorter is faster", "x",
                              [(what, value, value <= 1) for what, value in ratios], ("the same", 1))
            (REPOSITORY / "bench/ratios.svg").write_text(drawn)

    def publish(self, group):
        """A line in results.md, and the plots that the README shows."""
        if not group.cells:
            return
        cells = [self.date, self.commit, self.machine, group.image, *group.cells]
        subprocess.run([REPOSITORY / "bench/row.sh", group.heading, f"| {' | '.join(cells)} |"], check=True)
        for name, svg in group.plots.items():
            (REPOSITORY / "bench" / name).write_text(svg)


def _commit():
    """Of this tree, whether more than results was changed since, and whether the program is older."""
    git = ("git", "-C", REPOSITORY)
    told, source = (subprocess.run([*git, *words], stdout=subprocess.PIPE, text=True, check=False)
                    for words in (("rev-parse", "--short", "HEAD"),
                                  ("log", "-1", "--format=%ct", "--", "src", "Cargo.lock")))
    older = PROGRAM.exists() and PROGRAM.stat().st_mtime < int(source.stdout or 0)
    others = (".", ":!bench/results.md", ":!bench/*.svg")
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *others], check=False).returncode
    commit = (told.stdout.strip() or "unknown") + ("-dirty" if changed else "")
    return f"before {commit}" if older else commit


def _processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"
