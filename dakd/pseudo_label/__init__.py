"""Self-training: a student labels images without labels, and the result is a set of pairs like a generated one."""
