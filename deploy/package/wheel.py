#!/usr/bin/env python3
"""Makes a wheel for Python that puts the binary into the path of an environment. The same files give the same
bytes; times are those of SOURCE_DATE_EPOCH.

    wheel.py PROGRAM VERSION PLATFORM SBOM NOTICES DIRECTORY
"""

import base64
import hashlib
import os
import re
import sys
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# `aquifer` is another project's name in the index of Python packages.
NAME = "aquifer-server"
METADATA = """\
Metadata-Version: 2.4
Name: {name}
Version: {version}
Summary: Aquifer, a messaging platform in which an acknowledged message is always synced to disk
License-Expression: Apache-2.0
License-File: LICENSE
License-File: THIRD-PARTY
Requires-Python: >=3.8
Description-Content-Type: text/markdown

The wheel carries the binary `aquifer`: server and tools of Aquifer, a messaging platform in the manner of
Apache Pulsar. It has no Python code and needs no other package.

    aquifer standalone
    aquifer produce hello "first message"
    aquifer consume hello --subscription me
"""
WHEEL = """\
Wheel-Version: 1.0
Generator: aquifer deploy/package/wheel.py
Root-Is-Purelib: false
Tag: py3-none-{platform}
"""


def python_version(version: str) -> str:
    """1.2.3-rc.4 is 1.2.3rc4 there."""
    short = {"alpha": "a", "beta": "b", "rc": "rc"}
    found = re.fullmatch(r"(\d+\.\d+\.\d+)(?:-(alpha|beta|rc)\.(\d+))?", version)
    if not found:
        sys.exit(f"{version} has no counterpart among versions of Python packages")
    release, stage, number = found.groups()
    return release if stage is None else f"{release}{short[stage]}{number}"


def main() -> None:
    program, version, platform, sbom, notices, directory = sys.argv[1:]
    version = python_version(version)
    stem = f"{NAME.replace('-', '_')}-{version}"
    information = f"{stem}.dist-info"
    texts = {"name": NAME, "version": version, "platform": platform}
    files = [
        (f"{stem}.data/scripts/aquifer", Path(program).read_bytes(), 0o755),
        (f"{information}/METADATA", METADATA.format(**texts).encode(), 0o644),
        (f"{information}/WHEEL", WHEEL.format(**texts).encode(), 0o644),
        (f"{information}/licenses/LICENSE", (ROOT / "LICENSE").read_bytes(), 0o644),
        (f"{information}/licenses/THIRD-PARTY", Path(notices).read_bytes(), 0o644),
        (f"{information}/sboms/aquifer.cdx.json", Path(sbom).read_bytes(), 0o644),
    ]
    record = ""
    for name, data, _ in files:
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(data)}\n"
    files.append((f"{information}/RECORD", f"{record}{information}/RECORD,,\n".encode(), 0o644))

    # The format begins in 1980.
    when = max(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())), 315532800)
    level = int(os.environ.get("AQUIFER_PACKAGE_LEVEL", "6"))
    path = Path(directory) / f"{stem}-py3-none-{platform}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as wheel:
        for name, data, mode in files:
            entry = zipfile.ZipInfo(name, time.gmtime(when)[:6])
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o100000 | mode) << 16
            entry.create_system = 3
            wheel.writestr(entry, data, compresslevel=level)


main()
