"""The run on a GPU host that is lent for minutes (benchmarks/gpu_run.py), and the kit that is brought to it."""
