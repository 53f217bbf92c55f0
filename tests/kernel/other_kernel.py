"""A pytest plugin that puts another build of the extension in the place of the
one in the tree: the file that EARSHOT_TEST_KERNEL names. See test_sanitized.py."""

from __future__ import annotations

import importlib.util
import os
import sys

NAME = "dataplane.kernel._kernel"

spec = importlib.util.spec_from_file_location(NAME, os.environ["EARSHOT_TEST_KERNEL"])
assert spec is not None
sys.modules[NAME] = importlib.util.module_from_spec(spec)


def pytest_report_header() -> str:
    return f"kernel: {sys.modules[NAME].__file__}"
