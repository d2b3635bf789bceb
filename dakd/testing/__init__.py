"""Operands, plain definitions and tolerances, shared by tests and benchmarks."""
