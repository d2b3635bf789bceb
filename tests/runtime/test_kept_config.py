"""The settings that a run keeps are believed as it wrote them; a file of one's own may be called config.yaml too."""

from __future__ import annotations

import shutil

import pytest
from worlds import toy_config

from dakd.runtime.kept_config import CONFIG, open_config, refuse_changed_config
from dakd.runtime.runlog import save_config
from dakd.runtime.sealed import Changed, files_of, write_manifest


@pytest.fixture
def run(tmp_path):
    """A run of which prepare has finished."""
    folder = tmp_path / "run"
    save_config(toy_config(folder), folder / "prepare")
    write_manifest(folder / "prepare", files_of(folder / "prepare"))
    return folder


def test_settings_of_a_run_and_of_its_steps_are_opened_where_they_lie(run):
    for path in (run / CONFIG, run / "prepare" / CONFIG):
        assert open_config(path).run_path == run


def test_settings_that_are_edited_another_runs_or_lost_are_refused(run, tmp_path):
    path, other = run / CONFIG, tmp_path / "other"
    save_config(toy_config(other), other / "prepare")
    whole = path.read_text()
    for text, words in (
        (whole.partition("\n")[2], "has changed .* its first line is no checksum"),
        (whole.replace("seed: 3", "seed: 4"), "has changed .* its checksum differs"),
        ((other / CONFIG).read_text(), "is not the file that its step wrote here"),
    ):
        path.write_text(text)
        with pytest.raises(Changed, match=words):
            open_config(path)
    path.unlink()
    with pytest.raises(Changed, match=r"does not exist, though .* lists it"):
        refuse_changed_config(path)


def test_settings_of_a_copied_run_are_only_shown_and_a_copy_of_the_file_alone_is_ones_own(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    with pytest.raises(ValueError, match=r"is of the run in .*; expected its own folder: add run_dir="):
        open_config(copy / CONFIG)
    assert open_config(copy / CONFIG, only_shown=True).run_path == run
    assert open_config(copy / CONFIG, [f"run_dir={copy}"]).run_path == copy
    (tmp_path / "mine").mkdir()
    assert open_config(shutil.copy(run / CONFIG, tmp_path / "mine")).run_path == run
