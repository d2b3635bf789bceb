"""`generate --status | --verify | --repair | --preview`: every kind of damage is found, named and repaired."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import yaml
from sealed_edits import content_of, reseal
from worlds import teacher_file

from dakd.cli import run_step
from dakd.data.shards import ShardSet
from dakd.generate.generate import generate, repair, verify
from dakd.runtime.files import file_hash
from dakd.runtime.sealed import write_json
from dakd.runtime.tensor_files import load_state, read_metadata, save_weights


def tars(folder) -> dict[str, str]:
    return {path.name: file_hash(path) for path in sorted(folder.glob("*.tar"))}


def flip(path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def flip_a_pixel(folder):
    flip(folder / "shard-000001.tar", 2100)


def flip_a_bit_of_the_padding(folder):
    flip(folder / "shard-000001.tar", (folder / "shard-000001.tar").stat().st_size - 3)


def truncate(folder):
    tar = folder / "shard-000001.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])


def empty(folder):
    (folder / "shard-000001.tar").write_bytes(b"")


def lose_a_sample(folder):
    rewrite(folder, lambda lines: lines[:2])


def double_a_sample(folder):
    rewrite(folder, lambda lines: [lines[0], lines[0], lines[2]])


def take_another_shard(folder):
    shutil.copy(folder / "shard-000002.tar", folder / "shard-000001.tar")


def flip_a_bit_of_a_sidecar(folder):
    sidecar = folder / "shard-000001.json"
    sidecar.write_text(sidecar.read_text().replace('"num_soft":3', '"num_soft":2'))


def write_a_sidecar_with_another_number(folder):
    sidecar = folder / "shard-000001.json"
    reseal(sidecar, content_of(sidecar) | {"num_soft": 2})


def cut_a_sidecar(folder):
    sidecar = folder / "shard-000001.json"
    sidecar.write_text(sidecar.read_text()[:500])


def write_a_list_for_a_sidecar(folder):
    (folder / "shard-000001.json").write_text("[1]")


def write_numbers_for_records(folder):
    sidecar = folder / "shard-000001.json"
    reseal(sidecar, content_of(sidecar) | {"records": [1, 2, 3]})


def lose_a_tar(folder):
    (folder / "shard-000001.tar").unlink()


def lose_a_shard(folder):
    (folder / "shard-000001.tar").unlink()
    (folder / "shard-000001.json").unlink()


def lose_a_sidecar(folder):
    (folder / "shard-000001.json").unlink()


def rewrite(folder, change) -> None:
    """Write both files of a shard again with other records, as a faulty writer might have made them."""
    from dakd.data.sample import OSD_CLASSES
    from dakd.data.shards import write_shard

    shards = ShardSet(folder)
    info = json.loads((folder / "shard-000001.json").read_text())
    samples = change([shards.read(3 + i) for i in range(3)])
    try:
        write_shard(folder, 1, samples, OSD_CLASSES, codec="fp16", provenance=info["provenance"])
    except ValueError:  # the writer itself refuses keys twice: paste the records of two tars
        tar = folder / "shard-000001.tar"
        content = tar.read_bytes()
        record = (len(content) - len(content) % 10240) // 3 // 512 * 512
        tar.write_bytes(content[:record] + content)


DAMAGES = {
    flip_a_pixel: "its bytes have changed",
    flip_a_bit_of_the_padding: "sha256 is",
    truncate: "shard-000001.tar: ",
    empty: "shard-000001.tar: ",
    lose_a_sample: "lacks synthetic-00000005",
    double_a_sample: "shard-000001.tar: ",
    take_another_shard: "lacks synthetic-00000003",
    flip_a_bit_of_a_sidecar: "shard-000001.json is damaged (its bytes have changed)",
    write_a_sidecar_with_another_number: "num_soft differ from the content of the tar",
    cut_a_sidecar: "shard-000001.json is damaged",
    write_a_list_for_a_sidecar: "shard-000001.json is damaged",
    write_numbers_for_records: "shard-000001.json is damaged",
    lose_a_tar: "missing, though its sidecar is there",
    lose_a_shard: "shard-000001.tar: missing",
    lose_a_sidecar: "shard-000001.json: missing, though its tar is there",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_found_named_and_repaired(copy_of_set, whole_set, damage):
    config, folder = copy_of_set
    verify(config)
    damage(folder)
    with pytest.raises(ValueError, match=r"^1 faults in") as error:
        verify(config)
    assert DAMAGES[damage] in str(error.value) and "shard-000001" in str(error.value)
    repair(config)
    verify(config)
    assert tars(folder) == tars(whole_set / "generate")
    assert ShardSet(folder).index == ShardSet(whole_set / "generate").index


def test_a_sample_with_the_arrays_of_another_is_named(copy_of_set):
    config, folder = copy_of_set
    rewrite(folder, lambda some: [some[0], replace(some[1], sar=some[0].sar, soft_label=some[0].soft_label), some[2]])
    (folder / "shard-000001.json").unlink()
    generate(config)  # derives the sidecar from the tar
    with pytest.raises(ValueError, match="synthetic-00000004 is a copy of synthetic-00000003"):
        verify(config)


@pytest.mark.parametrize("name", ["index.json", "manifest.jsonl"])
@pytest.mark.parametrize("content", [None, "", "{}", "[1]"])
def test_a_summary_that_is_absent_or_wrong_is_found_and_derived_again(copy_of_set, whole_set, name, content):
    config, folder = copy_of_set
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(ValueError, match=name):
        verify(config)
    if name == "index.json":
        generate(config)  # the last file that a worker writes: anything but an index counts as absent
    else:
        repair(config)
    verify(config)
    assert ShardSet(folder).index == ShardSet(whole_set / "generate").index


def test_an_index_with_one_other_number_is_found(copy_of_set):
    config, folder = copy_of_set
    index = content_of(folder / "index.json")
    index["shards"][0]["num_samples"] += 1
    reseal(folder / "index.json", index)
    with pytest.raises(ValueError, match=r"index\.json: differs"):
        verify(config)


def test_damage_is_never_repaired_silently(copy_of_set):
    config, folder = copy_of_set
    flip_a_pixel(folder)
    damaged = tars(folder)
    for name in ("shard-000001.json", "shard-000003.tar", "shard-000003.json", "index.json"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match=r"1 of 4 shards are damaged, all others are there.*--repair"):
        generate(config)
    found = tars(folder)
    assert found == damaged and not (folder / "index.json").exists()
    repair(config)
    assert [path.suffix for path in (folder / "quarantine").iterdir()] == [".tar"]
    assert file_hash(next((folder / "quarantine").iterdir())) == damaged["shard-000001.tar"]
    verify(config)


def of_another_teacher(folder, new_set, tmp_path):
    other = new_set(tmp_path / "other")
    state, facts = load_state(teacher_file(other)), read_metadata(teacher_file(other))
    save_weights(teacher_file(other), {name: 0.9 * tensor for name, tensor in state.items()}, facts)
    for path in generate(other).glob("shard-000001.*"):
        shutil.copy(path, folder)


@pytest.mark.parametrize(("damage", "message"), [
    (lambda folder, *_: flip_a_pixel(folder), r"shard-000001\.tar: sha256 is \w+, its sidecar says"),
    (lambda folder, *_: truncate(folder), r"shard-000001\.tar: has \d+ bytes, its sidecar says"),
    (lambda folder, *_: lose_a_tar(folder), r"shard-000001\.tar: missing, though its sidecar is there"),
    (of_another_teacher, r"shard-000001\.json was made with another checkpoint"),
], ids=["flip", "truncate", "lose", "another teacher"])  # fmt: skip
def test_a_finished_set_with_a_changed_shard_is_not_called_finished(
    copy_of_set, new_set, tmp_path, whole_set, damage, message
):
    config, folder = copy_of_set
    generate(config)
    damage(folder, new_set, tmp_path)
    with pytest.raises(ValueError, match=rf"^1 of 4 shards are damaged.*--repair[^\n]*\n.*{message}"):
        generate(config)
    repair(config)
    assert tars(folder) == tars(whole_set / "generate")


def test_an_index_of_other_shards_than_those_that_are_there_is_written_again(copy_of_set, whole_set):
    config, folder = copy_of_set
    index = content_of(folder / "index.json")
    index["shards"][1]["sha256"] = "0" * 64
    reseal(folder / "index.json", index)
    generate(config)
    assert ShardSet(folder).index == ShardSet(whole_set / "generate").index


def test_a_wrong_provenance_beside_good_shards_is_written_again_and_no_shard_is_moved(copy_of_set, whole_set, capfd):
    config, folder = copy_of_set
    path = folder / "provenance.json"
    before = path.read_bytes()
    write_json(path, content_of(path) | {"checkpoint": "another", "b": 0.9})
    repair(config)
    assert "provenance.json was of another set and is written again" in capfd.readouterr().out
    assert path.read_bytes() == before and not (folder / "quarantine").exists()
    verify(config)
    assert tars(folder) == tars(whole_set / "generate")


def test_shards_of_two_sets_are_refused_by_repair_and_not_moved(copy_of_set):
    config, folder = copy_of_set
    other, before = content_of(folder / "provenance.json") | {"eta": 0.5}, tars(folder)
    write_json(folder / "provenance.json", other)
    reseal(folder / "shard-000001.json", content_of(folder / "shard-000001.json") | {"provenance": other})
    with pytest.raises(ValueError, match=r"provenance\.json was made with another eta; set it back"):
        repair(config)
    assert tars(folder) == before and not (folder / "quarantine").exists()


def test_files_of_dead_writers_are_removed_by_repair_alone(copy_of_set):
    import socket
    import subprocess

    config, folder = copy_of_set
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = folder / f".shard-000002.tar.{socket.gethostname()}.{dead.pid}.0a0b0c0d.tmp"
    elsewhere = folder / f".shard-000002.tar.another-host.{dead.pid}.0a0b0c0d.tmp"
    for path in (left, elsewhere):
        path.write_bytes(b"part")
    (folder / "claims" / "000002").write_text(f"{socket.gethostname()} {dead.pid}\n..")
    verify(config)
    generate(config)
    assert left.exists() and elsewhere.exists()
    repair(config)
    assert not left.exists() and elsewhere.exists() and not (folder / "claims" / "000002").exists()


@pytest.fixture
def command(copy_of_set, tmp_path):
    config, folder = copy_of_set
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return lambda *options: run_step("generate", ["--config", str(path), *options]), folder


def test_commands_answer_with_a_status_and_a_list(command, capsys):
    run, folder = command
    assert run("--verify") == 0 and "4 shards" in capsys.readouterr().out
    flip_a_pixel(folder)
    lose_a_shard_number(folder, 3)
    assert run("--verify") == 1
    error = capsys.readouterr().err
    assert "2 faults" in error and "shard-000001.tar: record" in error and "shard-000003.tar: missing" in error
    assert run("--repair") == 0 and run("--verify") == 0


def lose_a_shard_number(folder, shard: int) -> None:
    for suffix in ("tar", "json"):
        (folder / f"shard-{shard:06d}.{suffix}").unlink()


def test_status_lists_the_shards_that_are_finished_being_made_and_missing(command, capsys):
    run, folder = command
    lose_a_shard_number(folder, 2)
    lose_a_shard_number(folder, 3)
    (folder / "shard-000001.json").unlink()
    (folder / "claims" / "000003").write_text("another-host 77\n")
    assert run("--status") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "1 of 4 shards are finished, for 11 pairs" in lines[0]
    assert lines[1].split() == ["being", "made", "1:", "3"] and lines[2].split() == ["missing", "2:", "1,", "2"]
    assert "no sidecar  1: 1" in lines[3] and "img/s a worker, 1 at work, eta" in lines[4]
    tar_bytes = (folder / "shard-000000.tar").stat().st_size
    assert lines[5].split()[1:] == [f"{tar_bytes / 1e3:.3g}kB", "of", f"{4 * tar_bytes / 1e3:.3g}kB"]


def test_status_of_a_set_without_a_gate_asks_for_no_teacher(command, capsys, monkeypatch):
    monkeypatch.setattr("dakd.generate.status.teacher_classes", lambda config: pytest.fail("the teacher was read"))
    run, _ = command
    assert run("--status") == 0 and "4 of 4 shards are finished" in capsys.readouterr().out


def test_status_of_a_set_that_was_never_begun_is_refused(command, capsys):
    run, folder = command
    shutil.rmtree(folder)
    assert run("--status") == 1 and "holds no started set" in capsys.readouterr().err


def test_preview_draws_pairs_and_writes_no_shard(command):
    run, folder = command
    shutil.rmtree(folder)
    assert run("--preview", "3") == 0
    assert [path.name for path in folder.iterdir()] == ["preview.png"]
    with pytest.raises(SystemExit):
        run("--preview", "0")


def test_actions_exclude_one_another(command):
    run, _ = command
    with pytest.raises(SystemExit):
        run("--verify", "--repair")
