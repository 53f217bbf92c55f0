"""The ``earshot`` command.

It only finds out what is asked for and becomes that program, so that the
supervisor's process is the one that the operator started.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from dataplane.launch import python_module, version

HELP = """\
Earshot: the open-source edge for voice AI. WebRTC in, PCM out, one public UDP port.

usage: earshot COMMAND [options]

  up        run a node here: relays, transceivers, control plane   (earshot up --help)
  doctor    check this machine and say what to change              (earshot doctor --help)
  bench     measure it                                             (earshot bench --help)
  version   print the version

first steps:
  earshot doctor
  earshot up --backend-command echo="python3 examples/echo.py"
  then open http://127.0.0.1:8080/ and press Talk
"""

PROGRAMS = {
    "up": "dataplane.workers.supervisor",
    "doctor": "dataplane.doctor",
    "bench": "bench",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Does not return for a command that is a program of its own."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else "--help"
    if command in PROGRAMS:
        line = [*python_module(PROGRAMS[command]), *arguments[1:]]
        os.execv(line[0], line)
    if command in ("version", "--version", "-V"):
        print(f"earshot {version()}")
        return 0
    if command in ("help", "--help", "-h"):
        print(HELP, end="")
        return 0
    print(
        f"earshot: {command} is no command; use {', '.join(PROGRAMS)} or version (earshot --help)",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())
