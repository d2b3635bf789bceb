from __future__ import annotations

import pytest
from tiny_sam import save_tiny_sam, tiny_sam_oil


@pytest.fixture(scope="session")
def sam_folder(tmp_path_factory):
    return save_tiny_sam(tmp_path_factory.mktemp("sam") / "tiny")


@pytest.fixture
def tiny_student(sam_folder):
    return tiny_sam_oil(sam_folder)
