"""Tables of experiments: rows of settings, run as shared and resumable jobs, next to the paper's numbers."""
