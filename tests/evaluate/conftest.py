from evaluate_worlds import config, grey_student, run_dir  # noqa: F401
