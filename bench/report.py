"""What was measured, as a table, as JSON, and as a line of results.md."""

import datetime
import json
import os
import platform
import subprocess
from pathlib import Path

import budget
import measure
from room import PLACE, REPOSITORY


class Group:
    """Rows that are measured together, on one image."""

    def __init__(self, heading, image):
        # Of the table in results.md.
        self.heading, self.image = heading, image
        self.rows, self.cells, self.budgets, self.plots = [], [], [], {}

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
        describe = ["git", "-C", REPOSITORY, "describe", "--always", "--dirty"]
        told = subprocess.run(describe, stdout=subprocess.PIPE, text=True, check=False)
        self.commit = told.stdout.strip() or "unknown"
        self.date = datetime.date.today().isoformat()
        self.groups = []

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
        """The budgets of all groups; those of the extender, which has a run of its own, as recorded."""
        return [kept for group in self.groups for kept in group.budgets] + budget.recorded_extension()

    def publish(self, group):
        """A line in results.md, and the plots that the README shows."""
        cells = [self.date, self.commit, self.machine, group.image, *group.cells]
        subprocess.run([REPOSITORY / "bench/row.sh", group.heading, f"| {' | '.join(cells)} |"], check=True)
        for name, svg in group.plots.items():
            (REPOSITORY / "bench" / name).write_text(svg)


def _processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"
