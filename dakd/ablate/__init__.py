"""The paper's tables on one's own data: rows of settings, run as shared and resumable jobs, set beside the paper."""
