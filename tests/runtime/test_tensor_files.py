from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dakd.runtime import tensor_files
from dakd.runtime.sealed import seal


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_tensors_and_metadata_come_back_as_written(tmp_path):
    path = tmp_path / "new" / "w.safetensors"
    tied = torch.randn(3, 4)
    state = {"a": tied, "b": tied.T, "c": torch.tensor(7), "d": torch.randn(2).bfloat16()}
    metadata = {"b": 0.528, "classes": ["sea", "oil"], "nested": {"step": 3}}
    tensor_files.save_weights(path, state, metadata)
    assert same(tensor_files.load_state(path), state)
    assert tensor_files.read_metadata(path) == metadata
    assert [entry.name for entry in path.parent.iterdir()] == ["w.safetensors"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    tensor_files.save_weights(path, {"a": torch.ones(2)}, {})

    def fill_up(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(tensor_files, "save_file", fill_up)
    with pytest.raises(OSError, match="no space left"):
        tensor_files.save_weights(path, {"a": torch.zeros(2)}, {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.safetensors"]
    assert torch.equal(tensor_files.load_state(path)["a"], torch.ones(2))


def test_a_reader_of_the_old_file_keeps_it_whole_while_a_new_one_is_written(tmp_path):
    path = tmp_path / "w.safetensors"
    tensor_files.save_weights(path, {"a": torch.ones(2)}, {})
    old = path.read_bytes()
    with open(path, "rb") as reader:
        tensor_files.save_weights(path, {"a": torch.zeros(2)}, {})
        assert reader.read() == old
    assert path.read_bytes() != old


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights at .*absent"):
        tensor_files.load_state(tmp_path / "absent.safetensors")
    path = tmp_path / "w.safetensors"
    tensor_files.save_weights(path, {"a": torch.ones(200)}, {})
    path.write_bytes(path.read_bytes()[:-100])
    for read in (tensor_files.load_state, tensor_files.read_metadata):
        with pytest.raises(ValueError, match=r"w\.safetensors is not a whole safetensors file"):
            read(path)


def test_a_mismatch_lists_what_is_missing_unexpected_and_misshapen_and_changes_nothing():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {"0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(4), "1.weight": torch.zeros(1, 3)}
    state |= {f"extra{i:02d}": torch.zeros(1) for i in range(13)}
    with pytest.raises(ValueError) as caught:
        tensor_files.load_strict(model, state, "old.safetensors")
    message = str(caught.value)
    assert "old.safetensors do not fit Sequential" in message
    assert "1 missing:\n    1.bias" in message
    assert "0.bias: found (4,), expected (3,)" in message
    assert "13 unexpected" in message and "extra09" in message and "extra10" not in message and "and 3 more" in message
    assert same(model.state_dict(), before)


def test_a_fitting_state_is_loaded():
    source, target = nn.Linear(2, 3), nn.Linear(2, 3)
    tensor_files.load_strict(target, source.state_dict(), "memory")
    assert same(target.state_dict(), source.state_dict())


@pytest.mark.parametrize("text", ["{", "[1]", seal("{,"), seal('{"a": ' + "[" * 5000)])
def test_metadata_that_are_no_settings_are_refused(tmp_path, text):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(2)}, path, metadata={"dakd": text})
    with pytest.raises(ValueError, match=r"w\.safetensors (does not end with|is not JSON)"):
        tensor_files.read_metadata(path)


def test_every_flipped_bit_of_a_weights_file_is_noticed_or_of_no_meaning(tmp_path):
    path = tmp_path / "w.safetensors"
    state = {"a": torch.arange(3.0), "steps": torch.tensor(7)}
    tensor_files.save_weights(path, state, {"b": 0.5})
    whole = path.read_bytes()
    num_read = 0
    for place in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            found, metadata = tensor_files.load_state(path), tensor_files.read_metadata(path)
        except (ValueError, FileNotFoundError) as error:
            assert "w.safetensors" in str(error)
            continue
        num_read += 1  # spaces of the header that are no part of any value
        assert same(found, state) and metadata == {"b": 0.5}
    assert num_read <= 16


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_written_nor_read(tmp_path, value):
    state = {"good": torch.ones(2), "net.bad": torch.tensor([1.0, value, value])}
    with pytest.raises(ValueError, match=r"w\.safetensors: 2 of 3 values in net\.bad are not finite"):
        tensor_files.save_weights(tmp_path / "w.safetensors", state, {})
    assert list(tmp_path.iterdir()) == []
    save_file(state, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match=r"foreign\.safetensors: 2 of 3 values in net\.bad are not finite"):
        tensor_files.load_foreign_state(tmp_path / "foreign.safetensors")


def test_weights_without_a_checksum_are_refused(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"w\.safetensors holds no checksum of its tensors, so dakd did not write it"):
        tensor_files.load_state(tmp_path / "w.safetensors")


@pytest.mark.parametrize("digest", [True, 7, ["a"]])
def test_a_checksum_that_is_no_text_fits_no_tensors(tmp_path, digest):
    metadata = {"dakd": seal(json.dumps({"tensors_sha256": digest}))}
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=r"w\.safetensors has changed since dakd wrote it"):
        tensor_files.load_state(tmp_path / "w.safetensors")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_weights_of_another_dtype_are_refused_by_name(dtype):
    state = nn.Linear(2, 3).state_dict()
    state["bias"] = state["bias"].to(dtype)
    with pytest.raises(ValueError, match=rf"1 of another dtype:\n    bias: found {dtype}, expected torch.float32"):
        tensor_files.load_strict(nn.Linear(2, 3), state, "w.safetensors")


def test_weights_of_a_lower_precision_are_loaded():
    state = {name: tensor.bfloat16() for name, tensor in nn.Linear(2, 3).state_dict().items()}
    target = nn.Linear(2, 3)
    tensor_files.load_strict(target, state, "w.safetensors")
    assert torch.equal(target.weight, state["weight"].float())
