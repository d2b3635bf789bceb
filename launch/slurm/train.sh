# shellcheck shell=bash
# Sourced by the scripts of the trainings: runs one step on all tasks of the job, and queues the job again where the
# step was stopped before its end.

PYTHON=${PYTHON:-.venv/bin/python}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun takes no number of cores over from sbatch by itself

# train STEP CONFIG [--option value ...] [section.key=value ...]
train() {
    local step=$1 run status=0
    shift
    run=$("$PYTHON" -c '
import sys
from dakd.config import load_config
print(load_config(sys.argv[1], [word for word in sys.argv[2:] if "=" in word and word[0] != "-"]).run_path)
' "$@") || return 1
    rm -f "$run/$step"/*/requeue.json # a marker of an earlier job says nothing about this one
    srun --kill-on-bad-exit=1 "$PYTHON" "launch/$step.py" --config "$@" || status=$?
    # srun reports the highest status of its tasks, which may hide an 85; then the marker is there.
    if [ "$status" -eq 85 ] || compgen -G "$run/$step/*/requeue.json" >/dev/null; then
        echo "$step was stopped before its end; job $SLURM_JOB_ID is queued again and resumes from its checkpoint"
        scontrol requeue "$SLURM_JOB_ID"
        return 0
    fi
    return "$status"
}
