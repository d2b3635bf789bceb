"""Folders of the hub's form go out and come back; nothing is downloaded but for a hub id."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from worlds import toy_config

from dakd.card import card_of, count_parameters
from dakd.data.sample import OSD_CLASSES
from dakd.hub import find_weights, is_hub_id, local_weights, push_folder, save_folder
from dakd.models.registry import build_student
from dakd.runtime.tensor_files import read_metadata, save_weights
from dakd.weights import load_student, save_student

# Those that others are kinds of come first.
ERRORS = (
    "EntryNotFoundError", "LocalEntryNotFoundError", "RepositoryNotFoundError", "GatedRepoError",
    "RevisionNotFoundError", "OfflineModeIsEnabled", "HFValidationError",
)  # fmt: skip


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    config = toy_config(tmp_path_factory.mktemp("student"))
    torch.manual_seed(0)
    settings = config.train_saross.student.model_copy(update={"pretrained": "/home/secret/public.pth.tar"})
    path = config.run_path / "student.safetensors"
    save_student(path, build_student(settings, 5), settings, OSD_CLASSES, {"training_set": "real"})
    return path


@pytest.fixture
def folder(student, tmp_path) -> Path:
    return save_as_hub(student, tmp_path / "folder")


def save_as_hub(student: Path, folder: Path) -> Path:
    net, metadata = load_student(student)
    state = net.state_dict()
    card = card_of(metadata, count_parameters({name: one.shape for name, one in state.items()}))
    return save_folder(folder, state, metadata, card)


@pytest.fixture
def hub(monkeypatch) -> SimpleNamespace:
    """Stands in for huggingface_hub: keeps the calls, and raises `fails` where that is set."""
    record = SimpleNamespace(calls=[], fails=None)
    module, errors = ModuleType("huggingface_hub"), ModuleType("huggingface_hub.errors")
    for name in ERRORS:
        base = {"LocalEntryNotFoundError": "EntryNotFoundError", "GatedRepoError": "RepositoryNotFoundError"}.get(name)
        setattr(errors, name, type(name, (getattr(errors, base) if base else Exception,), {}))

    def call(name: str, answer: object):
        def method(**options: object) -> object:
            record.calls.append((name, options))
            if record.fails:
                raise record.fails
            return answer

        return method

    def open_api(**options: object) -> SimpleNamespace:
        record.calls.append(("HfApi", options))
        url = "https://huggingface.co/me/model/commit/1"
        return SimpleNamespace(
            create_repo=call("create_repo", None), create_branch=call("create_branch", None),
            upload_folder=call("upload_folder", url),
        )  # fmt: skip

    module.hf_hub_download = call("download", "/cache/model.safetensors")
    module.HfApi, module.errors, record.errors = open_api, errors, errors
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return record


def test_a_folder_holds_a_model_that_its_weights_alone_rebuild(student, folder):
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        (net, _), (copy, metadata) = load_student(student), load_student(folder / "model.safetensors")
        assert torch.equal(net(image), copy(image))
    assert json.loads((folder / "config.json").read_text()) == metadata == read_metadata(find_weights(folder))
    assert metadata["training_set"] == "real" and "# SAROSS-Net" in (folder / "README.md").read_text()


def test_no_place_of_the_machine_is_published(student, folder):
    assert "/home/secret" in student.read_bytes().decode("latin-1")
    assert all(b"secret" not in path.read_bytes() for path in folder.iterdir())
    assert read_metadata(folder / "model.safetensors")["student"]["pretrained"] == "public.pth.tar"


def test_a_card_that_dakd_has_not_written_stays(student, folder, capsys):
    save_as_hub(student, folder)
    assert capsys.readouterr().out == ""
    (folder / "README.md").write_text("# Mine\n")
    save_as_hub(student, folder)
    assert (folder / "README.md").read_text() == "# Mine\n"
    assert "README.md was not written by dakd, and is kept" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_model_of_another_library_is_not_written_over(name, student, tmp_path):
    if name == "config.json":
        (tmp_path / name).write_text('{"model_type": "segformer"}')
    else:
        save_file({"w": torch.zeros(1)}, tmp_path / name)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(ValueError, match=rf"{name} was not written by dakd, and is not replaced; give another folder"):
        save_as_hub(student, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_bytes() == before


def test_a_model_of_another_kind_is_not_written_over(student, folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"config\.json is a model of the kind student, not jointnet; give another"):
        save_folder(folder, {"w": torch.zeros(1)}, {"kind": "jointnet"}, "")
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is a model of the kind student, not jointnet"):
        save_folder(folder, {"w": torch.zeros(1)}, {"kind": "jointnet"}, "")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: content for name, content in before.items() if name != "config.json"
    }


def test_a_folder_with_two_weights_that_differ_is_refused_and_with_two_alike_taken(student, folder):
    trained = folder / "student.safetensors"
    trained.write_bytes(student.read_bytes())
    assert find_weights(folder) == folder / "model.safetensors"
    save_weights(trained, {"w": torch.zeros(1)}, {"kind": "student"})
    for find in (find_weights, local_weights):
        with pytest.raises(ValueError, match=r"has model\.safetensors and other weights in student\.safetensors; give"):
            find(folder)


def test_metadata_that_are_not_json_leave_nothing_behind(tmp_path):
    with pytest.raises(TypeError):
        save_folder(tmp_path / "folder", {"a": torch.zeros(1)}, {"when": object()}, "")
    assert not (tmp_path / "folder").exists()


def test_the_weights_come_last(folder, student, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError("disk full")

    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr("dakd.hub.write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        save_as_hub(student, folder)
    assert [path.name for path in folder.iterdir()] == ["README.md"]


def test_a_local_file_and_a_folder_are_taken_as_they_are(student, folder, hub, monkeypatch):
    assert find_weights(student) == student and find_weights(str(student)) == student
    assert find_weights(folder) == folder / "model.safetensors"
    assert find_weights(student.parent) == student
    monkeypatch.chdir(folder.parent)
    (folder.parent / "owner").mkdir()
    folder.rename(folder.parent / "owner" / "model")
    assert find_weights("owner/model") == Path("owner/model/model.safetensors")  # a folder comes before a hub id
    assert hub.calls == []


def test_a_folder_without_weights_to_choose_says_what_is_there(tmp_path):
    with pytest.raises(ValueError, match=r"no model.safetensors.*there is: nothing"):
        find_weights(tmp_path)
    (tmp_path / "student_raw.safetensors").touch()
    with pytest.raises(ValueError, match=r"there is: student_raw.safetensors. Give the .safetensors file itself"):
        find_weights(tmp_path)
    (tmp_path / "student.safetensors").touch()
    (tmp_path / "weights_ema.safetensors").touch()
    with pytest.raises(ValueError, match="not exactly one of"):
        find_weights(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["./owner/model", "~/model", "/owner/model", "runs/demo/train_saross", "owner/student.safetensors", "student", "",
     "../model", "owner/..", "owner\\model", "owner/model\n", Path("owner/model")],
)  # fmt: skip
def test_what_looks_like_a_path_never_leads_to_a_download(name, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FileNotFoundError, match="no file or folder at"):
        find_weights(name)
    assert hub.calls == [] and not is_hub_id(name)


def test_a_hub_id_is_downloaded_with_the_options(hub):
    options = {"force_download": True, "token": "t", "cache_dir": "c", "local_files_only": True, "revision": "v1"}
    assert find_weights("owner/model", **options) == Path("/cache/model.safetensors")
    wanted = {"repo_id": "owner/model", "filename": "model.safetensors", "library_name": "dakd"}
    assert hub.calls == [("download", options | wanted)]


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("LocalEntryNotFoundError", RuntimeError, "owner/model at revision v1 is not in the local cache"),
        ("OfflineModeIsEnabled", RuntimeError, "connect to the network"),
        ("GatedRepoError", ValueError, "no repository owner/model; look for a typing"),
        ("RepositoryNotFoundError", ValueError, "give a token"),
        ("RevisionNotFoundError", ValueError, "owner/model has no revision v1"),
        ("EntryNotFoundError", ValueError, "has no model.safetensors"),
        ("HFValidationError", ValueError, "not a valid hub id"),
        (None, RuntimeError, r"the hub refused owner/model at revision v1 or did not answer \(timed out\)"),
    ],
)
def test_an_error_of_the_hub_is_given_in_plain_words(name, kind, words, hub):
    hub.fails = getattr(hub.errors, name)("long words") if name else TimeoutError("timed out\nmore")
    with pytest.raises(kind, match=words):
        find_weights("owner/model", revision="v1")


def test_without_huggingface_hub_only_a_hub_id_is_refused(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert find_weights(folder).is_file()
    for ask in (lambda: find_weights("owner/model"), lambda: push_folder(folder, "owner/model")):
        with pytest.raises(RuntimeError, match=r"owner/model is on the Hugging Face hub.*pip install .*\[hub\]"):
            ask()


def test_a_folder_is_pushed_and_nothing_else_of_it(folder, hub):
    (folder / "notes.txt").touch()
    url = push_folder(folder, "me/model", private=True, token="t", commit_message="First", branch="v1", create_pr=True)
    assert url == "https://huggingface.co/me/model/commit/1" and type(url) is str
    assert [name for name, _ in hub.calls] == ["HfApi", "create_repo", "create_branch", "upload_folder"]
    assert hub.calls[0][1]["token"] == "t"
    assert hub.calls[1][1] == {"repo_id": "me/model", "private": True, "exist_ok": True}
    upload = hub.calls[3][1]
    assert upload["allow_patterns"] == ["model.safetensors", "config.json", "README.md"]
    assert (upload["commit_message"], upload["revision"], upload["create_pr"]) == ("First", "v1", True)
    hub.calls.clear()
    push_folder(folder, "me/model")
    assert [name for name, _ in hub.calls] == ["HfApi", "create_repo", "upload_folder"]


def test_what_cannot_be_pushed_is_refused_before_the_hub_is_asked(folder, hub, tmp_path):
    with pytest.raises(ValueError, match=r"has no model.safetensors; write it with save_pretrained first"):
        push_folder(tmp_path, "me/model")
    with pytest.raises(ValueError, match=r"'\./model' is not a hub id; expected OWNER/NAME"):
        push_folder(folder, "./model")
    assert hub.calls == []


def test_huggingface_hub_has_what_is_used_of_it():
    hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("huggingface_hub.errors")
    assert all(issubclass(getattr(hub.errors, name), Exception) for name in ERRORS)
    used = {
        hub.hf_hub_download: "repo_id filename library_name force_download token cache_dir local_files_only revision",
        hub.HfApi.create_repo: "repo_id private exist_ok",
        hub.HfApi.create_branch: "repo_id branch exist_ok",
        hub.HfApi.upload_folder: "repo_id repo_type folder_path commit_message revision create_pr allow_patterns",
        hub.HfApi.__init__: "token library_name",
    }
    for function, names in used.items():
        assert set(names.split()) <= set(inspect.signature(function).parameters)
