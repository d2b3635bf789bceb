"""A visit to a GPU host that is lent for minutes (benchmarks/gpu_run.py): its phases, and the kit that it needs."""
