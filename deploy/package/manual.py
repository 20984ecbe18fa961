#!/usr/bin/env python3
"""Writes a manual page for every command of a binary, from what its `--help` prints.

    manual.py PROGRAM DIRECTORY
"""

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Help:
    """What `--help` says about one command."""

    path: list[str]
    about: list[str] = field(default_factory=list)
    usage: list[str] = field(default_factory=list)
    # Commands, Arguments, Options, and other headings: entries of a term and its paragraphs.
    sections: dict[str, list[tuple[str, list[str]]]] = field(default_factory=dict)
    after: list[str] = field(default_factory=list)

    @property
    def page(self) -> str:
        return "-".join(self.path)

    def children(self) -> list[str]:
        return [name for name, _ in self.sections.get("Commands", []) if name != "help"]


def ask(program: str, path: list[str]) -> Help:
    # The help shows the value of a variable that is set.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AQUIFER_")}
    run = subprocess.run([program, *path[1:], "--help"], check=True, capture_output=True, text=True, env=clean)
    return parse(path, run.stdout)


def parse(path: list[str], text: str) -> Help:
    page = Help(path)
    section: list[tuple[str, list[str]]] | None = None
    usage = False
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        words = line.strip()
        if line.startswith("Usage: "):
            page.usage.append(line.removeprefix("Usage: "))
            usage = True
        elif usage and indent == 7:
            page.usage.append(words)
        elif not page.usage:
            page.about.append(words)
        elif indent == 0 and re.fullmatch(r"[A-Z][A-Za-z ]+:", line):
            section = page.sections.setdefault(words.removesuffix(":"), [])
        elif section is not None and indent >= 8:
            section[-1][1].append(words)
        elif section is not None and indent >= 2:
            usage = False
            term, _, about = words.partition("  ")
            section.append((term, [about.strip()] if about else []))
        elif section is not None and words == "":
            if section:
                section[-1][1].append("")
        elif words:
            section = None
            page.after.append(words)
    if not page.usage or not page.about:
        sys.exit(f"the help of `{' '.join(path)}` does not look as expected")
    return page


def escaped(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = re.sub(r"`([^`]*)`", r"\\fB\1\\fR", text)
    return f"\\&{text}" if text.startswith((".", "'")) else text


def term(text: str) -> str:
    """Flags and commands are bold, what stands for something is slanted."""
    marked = re.sub(r"(?<![\w-])(--?[\w-]+)", "\0B\\1\0R", text)
    marked = re.sub(r"<([^<>]*)>", "\0I\\1\0R", marked)
    return escaped(marked).replace("\0", "\\f")


def paragraphs(lines: list[str]) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    for line in lines:
        if line:
            groups[-1].append(line)
        elif groups[-1]:
            groups.append([])
    return [group for group in groups if group]


def entries(listed: list[tuple[str, list[str]]]) -> list[str]:
    out = []
    for name, lines in listed:
        out += [".TP", term(name)]
        for at, group in enumerate(paragraphs(lines)):
            if at:
                out += [".IP"]
            for line in group:
                item = line.removeprefix("- ")
                # Values of an option are a list.
                out += [".br"] if item != line and line != group[0] else []
                out.append(escaped(item if item == line else f"\u2022 {item}"))
    return out


def roff(page: Help, everywhere: set[str], version: str, day: str) -> str:
    about = " ".join(page.about).strip()
    name = page.page
    out = [f'.TH {escaped(name.upper())} 1 {day} "{version}" "Aquifer Manual"']
    out += [".SH NAME", f"{escaped(name)} \\- {escaped(about)}", ".SH SYNOPSIS"]
    for at, usage in enumerate(page.usage):
        out += [".br"] if at else []
        command = " ".join(page.path)
        rest = usage.removeprefix(command)
        out.append(f"\\fB{escaped(command)}\\fR{term(rest)}")
    is_root = len(page.path) == 1
    for heading, listed in page.sections.items():
        own = [entry for entry in listed if is_root or entry[0] not in everywhere]
        if heading == "Commands":
            own = [(f"{name.replace('-', ' ')} {child}", text) for child, text in own if child != "help"]
        if own:
            out += [f".SH {heading.upper()}", *entries(own)]
    if not is_root:
        out += [".PP", "Options of every command, such as", f"\\fB{escaped('--url')}\\fR, are in \\fBaquifer\\fR(1)."]
    if page.after:
        out.append(".SH EXIT STATUS")
        out += [escaped(line.removeprefix("Exit codes: ")) for line in page.after]
    parents = ["-".join(page.path[:count]) for count in range(1, len(page.path))]
    related = parents + [f"{name}-{child}" for child in page.children()]
    if related:
        out.append(".SH SEE ALSO")
        out.append(", ".join(f"\\fB{escaped(other)}\\fR(1)" for other in related))
    return "\n".join(out) + "\n"


def main() -> None:
    program, directory = sys.argv[1], Path(sys.argv[2])
    directory.mkdir(parents=True, exist_ok=True)
    version = subprocess.run([program, "-V"], check=True, capture_output=True, text=True).stdout.strip()
    day = time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))
    root = ask(program, ["aquifer"])
    everywhere = {name for name, _ in root.sections["Options"]} - {"-V, --version"}
    todo = [root]
    while todo:
        page = todo.pop()
        (directory / f"{page.page}.1").write_text(roff(page, everywhere, version, day))
        todo += [ask(program, [*page.path, child]) for child in page.children()]


main()
