"""Packaging; metadata lies in pyproject.toml. The compiled operations of csrc/ join here once there are any."""

from setuptools import setup

setup()
