"""What tests and benchmarks share, so that both see the same operands, rivals and tolerances."""
