"""BALANCE and the teacher's mathematics: schedule, forward process, losses, sampler."""
