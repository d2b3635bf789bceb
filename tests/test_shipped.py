"""Files that come with dakd are found by name, a user's own by path first."""

from __future__ import annotations

import subprocess
from importlib import metadata

import pytest

from dakd import shipped
from dakd.ablate.spec import load_table
from dakd.config import load_config
from dakd.train.zero import zero_config

AUTHOR = ("-c", "user.name=a", "-c", "user.email=a@b")


@pytest.mark.parametrize("name", ["demo", "demo.yaml", "configs/demo.yaml"])
def test_a_shipped_experiment_is_found_by_name_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(name).name == "demo"


def test_a_users_own_file_comes_before_a_shipped_one_and_a_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert load_config("demo").name == "demo"
    (tmp_path / "demo.yaml").write_text("name: mine\n")
    assert load_config("demo.yaml").name == "mine" and load_config("demo").name == "demo"


def test_a_file_below_the_home_folder_is_found_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "h.yaml").write_text("name: mine\n")
    assert load_config("~/h.yaml").name == "mine" and shipped.find_file("~/demo") is None


def test_tables_and_zero_files_have_kinds_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("zero2", "zero2.json", "deepspeed/zero2.json", "configs/deepspeed/zero2.json"):
        assert shipped.find_file(name, "deepspeed", ".json").name == "zero2.json"
    assert shipped.find_file("ce_b", "ablate").parent.name == "ablate"
    assert shipped.find_file("ce_b") is None and shipped.find_file("demo", "ablate") is None


@pytest.mark.parametrize("name", ["/configs/demo.yaml", "nowhere/demo.yaml", "configs/../demo.yaml", ""])
def test_a_path_that_leads_nowhere_finds_no_shipped_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.find_file(name) is None


@pytest.mark.parametrize("name", ["9" * 300, "9" * 252, "folder/" * 600 + "9"])
def test_a_name_that_is_too_long_for_a_file_is_an_unknown_one(name):
    for read in (load_config, load_table, zero_config):
        with pytest.raises(ValueError, match="give a path, or the name of one that comes with dakd"):
            read(name)


def test_an_unknown_name_is_refused_with_the_nearest_and_all_that_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"did you mean 'demo'.*osd, real_small, smoke"):
        load_config("dmo")
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="mine is a folder"):
        load_config("mine")


def test_an_extra_is_installed_from_the_checkout_or_beside_the_wheel(tmp_path, monkeypatch):
    assert shipped.extra_remedy("train") == "pip install -e '.[train]'"
    assert shipped.extension_remedy("g++") == "pip install --no-build-isolation -e . (needs g++)"
    package = tmp_path / "site-packages" / "dakd"
    monkeypatch.setattr(shipped, "_PACKAGE", package)
    (package / "configs").mkdir(parents=True)
    assert shipped.extra_remedy("train") == "pip install 'dakd[train]'"
    remedy = shipped.extension_remedy("nvcc", "DAKD_CUDA=1 ")
    assert "-e ." not in remedy and "DAKD_CUDA=1 pip wheel --no-build-isolation" in remedy and "needs nvcc" in remedy


def test_files_of_an_installed_package_lie_within_it(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "demo.yaml").touch()
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "dakd")
    assert not shipped.is_installed() and shipped.find_file("demo") == tmp_path / "configs" / "demo.yaml"
    (tmp_path / "dakd" / "configs").mkdir(parents=True)
    assert shipped.is_installed() and shipped.find_file("demo") is None and shipped.known_files() == []


def test_an_installed_package_within_another_repository_says_its_own_version(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "dakd")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run(["git", "-C", tmp_path, *AUTHOR, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    assert len(shipped.code_version.__wrapped__()) == 40
    monkeypatch.setattr(shipped, "is_installed", lambda: True)
    assert shipped.code_version.__wrapped__() == f"dakd {metadata.version('dakd')}"
