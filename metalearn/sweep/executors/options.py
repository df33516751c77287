"""The options of the launchers: what a job needs, and how many run at a time."""

from dataclasses import dataclass

from metalearn.config import choice, number, required


@dataclass
class ProcessesOptions:
    """Processes of this machine."""

    name: str = required()
    jobs: int | None = number(at_least=1)  # at a time; null: as many as cores, GPUs and memory allow
    cpus: int = number(at_least=1, at_most=1024)  # cores of a job: its OMP_NUM_THREADS
    gpus: float | None = number(at_least=0)  # of a job; below 1 a share; null: one where there is any
    memory: float | None = number(above=0)  # GB of a job; null: not asked
    minutes: float | None = number(above=0)  # of a job, then it ends after a checkpoint; null: no limit
    pin: bool = required()  # each job keeps to cores of its own


@dataclass
class JoblibOptions:
    """joblib's loky workers on this machine."""

    name: str = required()
    jobs: int | None = number(at_least=1)
    cpus: int = number(at_least=1, at_most=1024)
    gpus: float | None = number(at_least=0)
    memory: float | None = number(above=0)
    minutes: float | None = number(above=0)


@dataclass
class SlurmOptions:
    """Jobs of a SLURM cluster by submitit."""

    name: str = required()
    cluster: str = choice("slurm", "local", "debug")  # local: processes of this machine; debug: this process
    jobs: int = number(at_least=1)  # submitted and not ended, at a time
    array_parallelism: int = number(
        at_least=1
    )  # of the jobs submitted together, how many SLURM runs at a time
    cpus: int = number(at_least=1, at_most=1024)
    gpus: int = number(at_least=0)
    memory: float | None = number(above=0)  # GB; null: the cluster's own default
    minutes: float = number(above=0)  # the job's time limit at SLURM, in whole ones
    warning: int = number(at_least=1)  # seconds before that limit in which the job makes its checkpoint
    requeues: int = number(at_least=0)  # how often a job that reached its limit is put into the queue again
    partition: str | None = required()
    account: str | None = required()
    qos: str | None = required()
    constraint: str | None = required()
    setup: list[str] = required()  # lines of the batch script before the job, e.g. 'module load cuda'


@dataclass
class RayOptions:
    """Tasks of Ray, on this machine or an existing cluster."""

    name: str = required()
    address: str | None = required()  # of a cluster: auto, or host:port; null: Ray is started here
    jobs: int | None = number(at_least=1)  # at a time; null: as many as Ray's resources allow
    cpus: int = number(at_least=1, at_most=1024)
    gpus: float = number(at_least=0)  # below 1: a share
    memory: float | None = number(above=0)  # GB that Ray sets apart for a job; null: not asked
    minutes: float | None = number(above=0)
    retries: int = number(
        at_least=0
    )  # of a job whose worker or node was lost; it goes on from its checkpoint
    store: float = number(at_least=0.08)  # GB of Ray's object store where it is started here


LauncherOptions = ProcessesOptions | JoblibOptions | SlurmOptions | RayOptions
SCHEMAS = {
    "processes": ProcessesOptions,
    "joblib": JoblibOptions,
    "slurm": SlurmOptions,
    "ray": RayOptions,
}
