"""How one of our programs starts another of our programs."""

from __future__ import annotations

import importlib.metadata
import sys


def version() -> str:
    """The installed version of Earshot, or what says that it is not installed."""
    try:
        return importlib.metadata.version("earshot")
    except importlib.metadata.PackageNotFoundError:
        return "0+uninstalled"


def python_module(module: str) -> list[str]:
    """The command that runs ``module`` under this interpreter.

    ``python -m`` looks into the working directory first, where an operator's
    own ``queue.py`` would shadow the library's: ``-P`` leaves it out, wherever
    Earshot is installed and so is found without.
    """
    installed = version() != "0+uninstalled"
    return [sys.executable, *(["-P"] if installed else []), "-m", module]
