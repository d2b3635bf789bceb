"""What every step stands on: processes, seeds, run folders and logs."""
