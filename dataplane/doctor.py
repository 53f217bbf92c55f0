"""``earshot doctor``: checks this machine and says what to change.

Every check finds out by doing where it can: it binds the ports, enlarges a
buffer, opens a DTLS context, loads libopus. ✗ stops a node from working, ! makes
it worse than it could be.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from dataplane import doctor_libraries, doctor_machine
from dataplane.config import Config, ConfigError
from dataplane.finding import Finding, failure, ok
from dataplane.launch import version
from dataplane.settings import build_parser, load_config

MARKS = {"ok": "✓", "warning": "!", "failure": "✗"}
COLOURS = {"ok": "32", "warning": "33", "failure": "31"}


def examine(config: Config) -> Iterator[Finding]:
    """Runs every check. One that breaks is a finding like any other."""
    for check in (*doctor_machine.CHECKS, *doctor_libraries.CHECKS):
        name = check.__name__.replace("_", " ")
        try:
            yield check(config)
        except Exception as error:
            yield failure(
                name,
                f"the check itself failed: {type(error).__name__}: {error}",
                "report this, with the output of 'earshot doctor --json'",
            )


def _load(arguments: Sequence[str]) -> tuple[bool, Config, Finding]:
    """(wants JSON, configuration, what is to be said of it)."""
    parser = build_parser("earshot doctor", "Checks this machine and says what to change.")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    namespace = parser.parse_args(arguments)
    try:
        config = load_config(namespace, os.environ)
    except ConfigError as error:
        cure = "correct it; the other checks assume the defaults"
        return namespace.json, Config(), failure("configuration", str(error), cure)
    return namespace.json, config, ok("configuration", f"run directory {config.run_dir}")


def _print(finding: Finding, colour: bool) -> None:
    mark = MARKS[finding.status]
    if colour:
        mark = f"\033[{COLOURS[finding.status]}m{mark}\033[0m"
    print(f"{mark} {finding.check:<16} {finding.found}")
    if finding.cure:
        for line in finding.cure.splitlines():
            print(f"  {'':<16} → {line}")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 if anything stops a node from working."""
    try:
        wants_json, config, first = _load(sys.argv[1:] if argv is None else argv)
    except ConfigError as error:  # not even the flags can be read
        print(f"earshot: {error}", file=sys.stderr)
        return 1
    findings = [first]
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    if not wants_json:
        print(f"Earshot {version()} on {os.uname().nodename}\n")
        _print(first, colour)
    for finding in examine(config):
        findings.append(finding)
        if not wants_json:
            _print(finding, colour)
    failures = sum(finding.status == "failure" for finding in findings)
    warnings = sum(finding.status == "warning" for finding in findings)
    if wants_json:
        print(json.dumps({"version": version(), "findings": [asdict(f) for f in findings]}))
    elif failures:
        print(f"\n{failures} to fix (✗), {warnings} to consider (!)")
    else:
        print("\nReady: earshot up" + (f" ({warnings} to consider, !)" if warnings else ""))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
