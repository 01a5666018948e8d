"""Does the base install resolve to binary wheels alone, on the edge devices and elsewhere? Downloads metadata, installs nothing.

python scripts/check_wheels.py [--extra openvino ...]
Exits 1 and names the platform where some dependency has no wheel.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# JetPack 6 is Ubuntu 22.04 (glibc 2.35, Python 3.10), JetPack 7 Ubuntu 24.04 (glibc 2.39, Python 3.12).
TARGETS = [
    ("aarch64", "3.10", 35),
    ("aarch64", "3.12", 39),
    ("x86_64", "3.10", 35),
    ("x86_64", "3.11", 35),
    ("x86_64", "3.12", 35),
    ("x86_64", "3.13", 35),
]


def requirements(extras: list[str]) -> list[str]:
    """What pyproject.toml asks for, read by a TOML parser: tomllib has it from 3.11 on, pip always."""
    try:
        import tomllib
    except ModuleNotFoundError:
        from pip._vendor import tomli as tomllib  # type: ignore[no-redef]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = list(project["dependencies"])
    for extra in extras:
        found += project["optional-dependencies"][extra]
    return found


def resolve(wanted: list[str], machine: str, python: str, glibc: int) -> dict[str, str]:
    """Wheel name and version of every distribution pip would install there; raises CalledProcessError."""
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(glibc, 16, -1)] + [f"manylinux2014_{machine}"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--report", str(report), "--target", str(Path(folder, "target"))]
        command += ["--implementation", "cp", "--python-version", python]
        command += [f"--platform={platform}" for platform in platforms]
        subprocess.run([*command, *wanted], check=True, capture_output=True, text=True)
        installs = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {i["metadata"]["name"]: i["metadata"]["version"] for i in installs}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extra", action="append", default=[], help="also the requirements of this extra")
    wanted = requirements(parser.parse_args().extra)
    named = {re.split(r"[\s<>=!~\[;]", r, maxsplit=1)[0].lower() for r in wanted}
    failed = False
    for machine, python, glibc in TARGETS:
        try:
            found = resolve(wanted, machine, python, glibc)
        except subprocess.CalledProcessError as error:
            failed = True
            reason = [line for line in error.stderr.splitlines() if line.startswith("ERROR")]
            print(f"{machine:8} Python {python:5} FAILS  {reason[0] if reason else error.stderr[-300:]}")
            continue
        direct = ", ".join(f"{name} {version}" for name, version in sorted(found.items()) if name.lower() in named)
        print(f"{machine:8} Python {python:5} resolves, {len(found)} wheels: {direct}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
