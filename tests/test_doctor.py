"""The report of `dakd doctor` on hosts that are not as a package index would have them."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import pytest

from dakd import doctor


def test_a_package_without_a_record_of_its_version_is_still_installed(monkeypatch):
    def unknown(distribution):
        raise importlib.metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr(importlib.metadata, "version", unknown)
    monkeypatch.setattr(doctor, "PACKAGES", (("pytest-nightly", "pytest", "tests", "pip install pytest"),))
    assert "pytest-nightly installed, version unknown" in doctor.diagnose()


@pytest.mark.parametrize("extra", ["train", "encoders"])
def test_extras_are_installed_from_the_repository(monkeypatch, extra):
    find_spec, optional = importlib.util.find_spec, {module for _, module, _, _ in doctor.PACKAGES}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in optional else find_spec(name))
    assert f"pip install -e '.[{extra}]'" in doctor.diagnose()
