"""Writes the table of values in the chart's README from the comments of values.yaml.

    readme.py [--check]

A comment that begins with `# --` describes the key below it. With --check nothing is written, and a table
that differs is an error. It needs no package.
"""

import re
import sys
from pathlib import Path

CHART = Path(__file__).parent / "aquifer"
BEGIN, END = "<!-- values -->", "<!-- end of values -->"


def rows(text):
    """The described keys: (path, default, description)."""
    path, described = [], None
    for number, line in enumerate(text.splitlines(), 1):
        comment = re.match(r" *# -- (.*)", line)
        if comment:
            described = comment[1]
            continue
        key = re.match(r"( *)([A-Za-z]+):(.*)", line)
        if not key:
            continue
        depth = len(key[1]) // 2
        path = path[:depth] + [key[2]]
        default = key[3].strip()
        if described:
            yield ".".join(path), default, described
        elif default and "resources" not in path:
            sys.exit(f"values.yaml:{number}: {'.'.join(path)} has no comment that begins with `# --`")
        described = None


def table(text):
    lines = ["| value | default | meaning |", "|---|---|---|"]
    for path, default, meaning in rows(text):
        default = f"`{default}`" if default else ""
        lines.append(f"| `{path}` | {default} | {meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def main():
    readme = CHART / "README.md"
    text = readme.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    made = f"{before}{BEGIN}\n\n{table((CHART / 'values.yaml').read_text())}\n\n{END}{after}"
    if "--check" not in sys.argv:
        readme.write_text(made)
    elif made != text:
        sys.exit("the table in deploy/helm/aquifer/README.md is old: run deploy/helm/readme.py")


main()
