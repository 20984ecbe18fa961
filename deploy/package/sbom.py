#!/usr/bin/env python3
"""Writes what a binary is made of, as CycloneDX 1.6: the crates that Cargo.lock pins, the C and C++ that some
of them carry, and with --rootfs the Debian packages of an image. The same sources give the same bytes.

    sbom.py PROGRAM [--rootfs DIRECTORY] >FILE
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import time
import tomllib
import uuid
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[2]
# Crates whose version names the library that they compile: its package, supplier and version.
CARRIED = {
    "librocksdb-sys": ("rocksdb", "facebook", r"\+([0-9.]+)$", "v"),
    "tikv-jemalloc-sys": ("jemalloc", "jemalloc", r"\+([0-9.]+)", ""),
    "zstd-sys": ("zstd", "facebook", r"\+zstd\.([0-9.]+)$", "v"),
}


def host() -> str:
    rustc = subprocess.run(["rustc", "-vV"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return re.search(r"^host: (.*)$", rustc, re.MULTILINE)[1]


def tree(target: str) -> list[str]:
    """What is compiled into the binary for this target; nothing of builds and tests."""
    command = ["cargo", "tree", "--locked", "--package", "aquifer", "--edges", "normal", "--target", target]
    command += ["--prefix", "depth", "--format", " {p}|{l}|"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()


def crates(target: str) -> tuple[dict[str, dict], dict[str, set[str]]]:
    locked = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
    checksums = {(package["name"], package["version"]): package.get("checksum") for package in locked}
    components: dict[str, dict] = {}
    uses: dict[str, set[str]] = {}
    above: list[str] = []
    for line in tree(target):
        found = re.match(r"(\d+) (\S+) v(\S+)[^|]*\|([^|]*)\|", line)
        depth, name, version, licence = int(found[1]), found[2], found[3], found[4]
        checksum = checksums[name, version]
        reference = f"pkg:cargo/{name}@{quote(version, safe='.-')}"
        component = {"type": "library", "bom-ref": reference, "name": name, "version": version, "scope": "required"}
        if checksum:
            component["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        if licence:
            component["licenses"] = [{"expression": " ".join(licence.replace("/", " OR ").split())}]
        # A crate of this workspace is not in the registry.
        if checksum:
            component["purl"] = reference
        components[reference] = component
        uses.setdefault(reference, set())
        del above[depth:]
        if above:
            uses[above[-1]].add(reference)
        above.append(reference)
        if name in CARRIED:
            library, supplier, pattern, prefix = CARRIED[name]
            release = re.search(pattern, version)[1].rstrip(".")
            carried = f"pkg:github/{supplier}/{library}@{prefix}{release}"
            components[carried] = {
                "type": "library", "bom-ref": carried, "name": library, "version": release,
                "scope": "required", "purl": carried,
            }
            uses[carried] = set()
            uses[reference].add(carried)
    return components, uses


def debian(rootfs: Path) -> dict[str, dict]:
    components = {}
    for status in sorted((rootfs / "var/lib/dpkg/status.d").iterdir()):
        fields = dict(re.findall(r"^(Package|Version|Architecture): (.*)$", status.read_text(), re.MULTILINE))
        version = quote(fields["Version"], safe=".-~")
        purl = f"pkg:deb/debian/{fields['Package']}@{version}?arch={fields['Architecture']}"
        components[purl] = {
            "type": "library", "bom-ref": purl, "name": fields["Package"], "version": fields["Version"],
            "scope": "required", "purl": purl,
        }
    return components


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("program", type=Path)
    parser.add_argument("--rootfs", type=Path)
    given = parser.parse_args()
    target = host()
    components, uses = crates(target)
    binary = next(reference for reference in components if reference.startswith("pkg:cargo/aquifer@"))
    program = components.pop(binary) | {"type": "application"}
    program.pop("scope")
    program["hashes"] = [{"alg": "SHA-256", "content": hashlib.sha256(given.program.read_bytes()).hexdigest()}]
    if given.rootfs:
        packages = debian(given.rootfs)
        components |= packages
        uses[binary] |= packages.keys()
        uses |= {reference: set() for reference in packages}
    when = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when)),
            "component": program,
            "properties": [{"name": "aquifer:target", "value": target}],
        },
        "components": [components[reference] for reference in sorted(components)],
        "dependencies": [
            {"ref": reference, "dependsOn": sorted(uses[reference])} for reference in sorted(uses)
        ],
    }
    # The number is that of the contents.
    contents = json.dumps(document, sort_keys=True)
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, contents)}"
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
