#!/usr/bin/env python3
"""Prints the licences of the crates that are in the binary, each text once, with the crates that it is of. Binary
packages carry it, because most of these licences ask for that.
"""

import json
import re
import subprocess
from pathlib import Path

from sbom import ROOT, crates, host

NAMES = re.compile(r"(licen[cs]e|copying|copyright|notice|unlicense)([._-].*)?", re.IGNORECASE)
PROGRAMS = {".rs", ".c", ".h", ".py", ".html"}


def texts(directory: Path) -> list[str]:
    """Those of the crate, and of a library that it carries in a directory of its own."""
    found = [file for pattern in ("*", "*/*") for file in directory.glob(pattern)]
    files = [file for file in found if NAMES.fullmatch(file.name) and file.suffix not in PROGRAMS and file.is_file()]
    return [file.read_text(errors="replace").strip() for file in sorted(files)]


def main() -> None:
    target = host()
    components, _ = crates(target)
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", target]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    # Without a source it is ours.
    places = {
        (package["name"], package["version"]): Path(package["manifest_path"]).parent
        for package in metadata["packages"] if package["source"]
    }
    of: dict[str, list[str]] = {}
    silent = []
    for component in sorted(components.values(), key=lambda component: component["bom-ref"]):
        place = places.get((component["name"], component["version"]))
        if place is None:
            continue
        name = f"{component['name']} {component['version']}"
        found = texts(place)
        for text in found:
            of.setdefault(text, []).append(name)
        if not found:
            silent.append(f"{name}: {component['licenses'][0]['expression']}")
    print("Aquifer contains the libraries below, under these licences.")
    for text, names in sorted(of.items(), key=lambda item: item[1]):
        print(f"\n{'=' * 80}\n{', '.join(dict.fromkeys(names))}\n\n{text}")
    print(f"\n{'=' * 80}\nLibraries that name their licence and carry no text of it:\n")
    print("\n".join(silent))


main()
