"""Stands in for sbatch, srun, sacct and scancel, named by its first argument: jobs are processes here.

What SLURM itself does with them, no test here can say.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

JOBS = Path(os.environ["FAKE_SLURM"])


def sbatch(script):
    """Keep the script, start it once or for each index of its array."""
    text = Path(script).read_text()
    number = str(100 + len(list(JOBS.glob("*.sh"))))
    copy = JOBS / f"{number}.sh"
    copy.write_text(text)
    array = re.search(r"--array=0-(\d+)", text)
    for index in range(int(array[1]) + 1) if array else [None]:
        env = {**os.environ, "SLURM_JOB_ID": number}
        if index is not None:
            env |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": str(index)}
        with (JOBS / f"{number}.log").open("ab") as log:
            process = subprocess.Popen(
                ["bash", str(copy)], env=env, start_new_session=True, stdout=log, stderr=log
            )
        name = number if index is None else f"{number}_{index}"
        (JOBS / f"{name}.pid").write_text(str(process.pid))
    sys.stdout.write(f"Submitted batch job {number}\n")


def srun(*arguments):
    """The command behind the options."""
    words = list(arguments)
    while words[0].startswith("--"):
        del words[: 2 if words[0] in ("--output", "--error") else 1]
    os.execvp(words[0], words)


def sacct(*_):
    lines = ["JobID|State|NodeList"]
    for record in JOBS.glob("*.pid"):
        lines.append(f"{record.stem}|{'RUNNING' if _alive(int(record.read_text())) else 'COMPLETED'}|here")
    sys.stdout.write("\n".join(lines))


def scancel(job):
    os.killpg(int((JOBS / f"{job}.pid").read_text()), signal.SIGTERM)


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
