#!/usr/bin/env python3
"""Checks files of packages: a manual page for every command with every flag, completions that shells can read,
and an SBOM whose parts fit together.

    check_files.py PROGRAM DIRECTORY-OF-PACKAGES
"""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path


def run(*command: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, **options)


def check_manual(program: str, share: Path) -> list[str]:
    """Compared with the completion of bash, which clap makes in another way than its help."""
    pages = {}
    for file in (share / "man/man1").glob("*.1.gz"):
        pages[file.name.removesuffix(".1.gz")] = run("gzip", "-dc", str(file)).stdout
    wrong = []
    cases = re.findall(r"^        (aquifer(?:__subcmd)?__[\w]+)\)\n\s+opts=\"([^\"]*)\"", completion(program, "bash"), re.MULTILINE)
    everywhere = flags(pages["aquifer"])
    known = 0
    for name, options in cases:
        page = name.replace("__subcmd__", "__").replace("__", "-")
        if "help" in page or page not in pages:
            continue
        known += 1
        missing = {word for word in options.split() if word.startswith("--")} - flags(pages[page]) - everywhere
        wrong += [f"{page}.1 lacks {', '.join(sorted(missing))}"] if missing else []
    if known < 40 or len(pages) < 60:
        wrong.append(f"only {len(pages)} pages, of which the completion knows {known}")
    if shutil.which("groff"):
        for name, text in pages.items():
            said = run("groff", "-man", "-Kutf8", "-Tutf8", "-ww", "-z", input=text).stderr
            wrong += [f"{name}.1: {said}"] if said else []
    return wrong


def flags(page: str) -> set[str]:
    bare = re.sub(r"\\f[BIR]", "", page).replace("\\-", "-")
    return set(re.findall(r"--[a-z][a-z0-9-]*", bare))


def completion(program: str, shell: str) -> str:
    return run(program, "completion", shell, check=True).stdout


def check_completions(share: Path) -> list[str]:
    files = {
        "bash": share / "bash-completion/completions/aquifer",
        "zsh": share / "zsh/site-functions/_aquifer",
        "fish": share / "fish/vendor_completions.d/aquifer.fish",
    }
    wrong = []
    for shell, file in files.items():
        if shutil.which(shell):
            checked = run(shell, "-n", str(file))
            wrong += [f"{file.name}: {checked.stderr}"] if checked.returncode or checked.stderr else []
        elif "produce" not in file.read_text():
            wrong.append(f"{file.name} is not a completion")
    return wrong


def check_sbom(share: Path) -> list[str]:
    document = json.loads((share / "doc/aquifer/sbom.cdx.json").read_text())
    program = document["metadata"]["component"]
    parts = {part["bom-ref"] for part in document["components"]} | {program["bom-ref"]}
    uses = {entry["ref"]: set(entry["dependsOn"]) for entry in document["dependencies"]}
    names = {part["name"] for part in document["components"]}
    wrong = []
    if len(parts) != len(document["components"]) + 1 or parts != uses.keys():
        wrong.append("components and dependencies differ")
    reached, open_ = set(), [program["bom-ref"]]
    while open_:
        reference = open_.pop()
        if reference not in reached:
            reached.add(reference)
            open_ += uses.get(reference, set())
    if reached != parts:
        wrong.append(f"no path leads to {sorted(parts ^ reached)[:3]}")
    if not {"rocksdb", "jemalloc", "zstd", "tokio"} <= names or {"proptest", "tempfile"} & names:
        wrong.append("libraries are missing, or there are some that only tests use")
    return [f"SBOM: {what}" for what in wrong]


def main() -> None:
    program, packages = sys.argv[1], Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(next(packages.glob("aquifer-*.tar.gz"))) as tar:
            tar.extractall(scratch, filter="data")
        share = next(Path(scratch).iterdir()) / "share"
        wrong = check_manual(program, share) + check_completions(share) + check_sbom(share)
    if wrong:
        sys.exit("\n".join(wrong))
    print("manual, completions and SBOM: complete")


main()
