#!/usr/bin/env python3
"""Says what a binary needs of a system, as assignments for a shell.

    binary.py PROGRAM
"""

import re
import subprocess
import sys

# readelf's name of a machine: that of Linux, and that of Debian.
MACHINES = {"Advanced Micro Devices X86-64": ("x86_64", "amd64"), "AArch64": ("aarch64", "arm64")}
# The libraries that both Debian's packages and manylinux promise.
LIBRARIES = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6"}
# GLIBCXX_3.4.N: the libstdc++6 of Debian that has it, and the glibc of the first manylinux that does.
LIBSTDCXX = {28: ("10", 31), 29: ("11", 34), 30: ("12", 35), 31: ("13.1", 39), 32: ("13.2", 39), 33: ("14", 39)}


def readelf(option: str, program: str) -> str:
    run = subprocess.run(["readelf", "-W", option, program], check=True, capture_output=True, text=True)
    return run.stdout


def newest(prefix: str, versions: str) -> list[int]:
    found = re.findall(rf"Name: {prefix}_([0-9.]+)", versions)
    return max(([int(part) for part in version.split(".")] for version in found), default=[])


def main() -> None:
    program = sys.argv[1]
    machine = re.search(r"Machine:\s+(.*)", readelf("-h", program)).group(1).strip()
    if machine not in MACHINES:
        sys.exit(f"{program}: no packages are made for {machine}")
    linux, debian = MACHINES[machine]
    libraries = set(re.findall(r"\(NEEDED\).*\[(.*)\]", readelf("-d", program)))
    unknown = {name for name in libraries - LIBRARIES if not name.startswith("ld-linux")}
    if unknown:
        sys.exit(f"{program}: needs {', '.join(sorted(unknown))}, which the packages do not declare")
    versions = readelf("-V", program)
    glibc = newest("GLIBC", versions)
    depends = [f"libc6 (>= {glibc[0]}.{glibc[1]})"]
    manylinux = max(glibc[1], 17)
    if "libgcc_s.so.1" in libraries:
        depends.append("libgcc-s1 (>= 4.2)")
    if "libstdc++.so.6" in libraries:
        minor = max(newest("GLIBCXX", versions)[2], min(LIBSTDCXX))
        if minor not in LIBSTDCXX:
            sys.exit(f"{program}: needs GLIBCXX_3.4.{minor}: add it to the table of {sys.argv[0]}")
        package, at_least = LIBSTDCXX[minor]
        depends.append(f"libstdc++6 (>= {package})")
        manylinux = max(manylinux, at_least)
    print(f"machine={linux}")
    print(f"deb_architecture={debian}")
    print(f"deb_depends='{', '.join(depends)}'")
    print(f"wheel_platform=manylinux_2_{manylinux}_{linux}")


main()
