#!/usr/bin/env python3
"""Checks the configuration files of packages against a binary: it takes them as they are, they change nothing but
what they give, and what is commented out exists, with the default of the binary where it has one.

    check_config.py PROGRAM DIRECTORY
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROLES = ("standalone", "broker", "bookie", "autorecovery", "offloader")


def effective(program: str, role: str, *options: str) -> dict:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AQUIFER_")}
    command = [program, role, "--check-config", "--output", "json", *options]
    run = subprocess.run(command, capture_output=True, text=True, env=clean)
    if run.returncode:
        sys.exit(f"{' '.join(command)}: {run.stderr.strip()}")
    return json.loads(run.stdout)


def leaves(table: dict, path: str = ""):
    for key, value in table.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield path + key, value


def main() -> None:
    program, directory = sys.argv[1], Path(sys.argv[2])
    wrong, seen = [], 0
    for role in ROLES:
        file = directory / f"{role}.toml"
        effect = dict(leaves(effective(program, role, "--config", str(file))))
        text = file.read_text()
        given = dict(leaves(tomllib.loads(text)))
        # What other settings have by default may lie below it.
        data = ["--data-dir", given["data_dir"]] if "data_dir" in given else []
        defaults = dict(leaves(effective(program, role, *data)))
        for key in effect:
            if key not in given and effect[key] != defaults[key]:
                wrong.append(f"{file}: makes {key} {effect[key]!r} instead of {defaults[key]!r}")
        for key, value in leaves(tomllib.loads(re.sub(r"^# (?=[a-z_]+ = )", "", text, flags=re.MULTILINE))):
            seen += 1
            if key not in defaults:
                wrong.append(f"{file}: {key} does not exist")
            elif key not in given and defaults[key] not in (None, "", value):
                wrong.append(f"{file}: {key} is {defaults[key]!r} by default, not {value!r}")
    if wrong or seen < 40:
        sys.exit("\n".join(wrong) or f"only {seen} settings were found")


main()
