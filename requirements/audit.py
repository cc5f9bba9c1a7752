"""`make audit`: known vulnerabilities of the locked packages. Without a network it says so, and succeeds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

_NO_NETWORK = re.compile(r"ConnectionError|ProxyError|Max retries|ConnectTimeout|ReadTimeout|Could not connect", re.I)


def audit(program: str, locks: list[str]) -> int:
    """Run pip-audit on lock files, print each finding on a line, and return the exit code."""
    options = ["--progress-spinner=off", "--disable-pip", "--require-hashes", "--format=json", "--timeout=15"]
    for lock in locks:
        options += ["-r", lock]
    ended = subprocess.run([program, *options], capture_output=True, text=True, check=False)
    try:
        packages = json.loads(ended.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        if _NO_NETWORK.search(ended.stderr):
            print("audit: no network: nothing was audited")
            return 0
        last = (ended.stderr.strip().splitlines() or ["no output"])[-1]
        print(f"audit: pip-audit failed: {last[:300]}")
        return 1
    findings = [line for package in packages for line in _findings(package)]
    audited = sum("skip_reason" not in package for package in packages)
    for line in findings:
        print(f"audit: {line}")
    why = "" if audited == len(packages) else "; the index has no data about the others"
    print(f"audit: {audited} of {len(packages)} packages audited, {len(findings)} findings{why}")
    return 1 if findings else 0


def _findings(package: dict[str, Any]) -> list[str]:
    return [
        f"{package['name']} {package['version']}: {one['id']}; fixed in {', '.join(one['fix_versions']) or 'none'}"
        for one in package.get("vulns", [])
    ]


if __name__ == "__main__":
    sys.exit(audit(sys.argv[1], sys.argv[2:]))
