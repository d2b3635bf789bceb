"""What `dakd check` says of the trainings of an experiment."""

from __future__ import annotations

import re

import torch
from check_worlds import refusals, toy
from tiny_students import TINY_STUDENT
from worlds import teacher_file, with_teacher

from dakd.config import StudentConfig
from dakd.models.registry import build_student
from dakd.train.checkpoint import write_state
from dakd.train.saross import student_folder


def test_a_pretrained_encoder_that_is_none_is_refused(tmp_path):
    (tmp_path / "garbage.pth").write_bytes(b"garbage")
    (tmp_path / "folder").mkdir()
    teacher = teacher_file(with_teacher(tmp_path / "other"))
    for path, what in (
        (tmp_path / "garbage.pth", "is not a whole file of plain tensors"),
        (tmp_path / "folder", "does not exist"),
        (tmp_path / "absent.pth", "does not exist"),
        (teacher, r"weights of .* do not fit \w+; build"),
    ):
        config = toy(tmp_path, train_saross__student=TINY_STUDENT | {"pretrained": str(path)})
        assert re.search(what, refusals(config)["student"])
    net = build_student(StudentConfig(**TINY_STUDENT), 5)
    torch.save(net.encoder.state_dict(), tmp_path / "good.pth")
    good = TINY_STUDENT | {"pretrained": str(tmp_path / "good.pth")}
    assert refusals(toy(tmp_path, train_saross__student=good)) == {}


def test_a_student_that_resumes_needs_no_pretrained_encoder(tmp_path):
    student = TINY_STUDENT | {"pretrained": str(tmp_path / "absent.pth")}
    config = toy(tmp_path, train_saross__student=student, train_saross__training_sets=["real"])
    assert "student" in refusals(config)
    write_state(student_folder(config, "real") / "checkpoints" / "step-00000001", {}, {"identity": {}, "step": 1})
    assert "student" not in refusals(config)
