"""Only what pyproject.toml has no word for: the C kernel is built by cffi."""

from setuptools import setup

setup(cffi_modules=["dataplane/kernel/build.py:ffibuilder"])
