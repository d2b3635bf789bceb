"""TRAIN: the teacher's three stages and the student, under DeepSpeed."""
