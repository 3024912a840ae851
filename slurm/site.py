"""The ``[slurm]`` table: what a site wants of its jobs, and what each stage asks for."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from anyecg.loaders.settings import Section

# What sbatch takes as one word: no blank, no quote, nothing that a shell reads.
_WORD = r"^[A-Za-z0-9_.,:=@%+/&|!*()\[\]-]*$"
_MEMORY = r"^[0-9]+[KMGT]?$"
_TIME = r"^([0-9]+-)?[0-9]{1,3}:[0-9]{2}:[0-9]{2}$"
# A sweep's runs share cohort and shards, so only what comes after may differ.
SWEPT = ("stream", "finetune", "predict", "evaluate")
MAX_CELLS = 1000


class JobConfig(Section):
    """What the job of one stage asks for."""

    partition: str = Field("", pattern=_WORD, description="partition of this job; empty: as in [slurm]")
    nodes: int = Field(1, ge=1, le=10_000, description="nodes")
    tasks: int = Field(1, ge=1, le=1024, description="MPI ranks a node; one a GPU where there are any")
    cpus: int = Field(1, ge=1, le=1024, description="cores a rank")
    gpus: int = Field(0, ge=0, le=64, description="GPUs a node")
    memory: str = Field("4G", pattern=_MEMORY, description="memory a node, as 64G; 0: all there is")
    time: str = Field("01:00:00", pattern=_TIME, description="time limit, hours:minutes:seconds; D-H:M:S too")

    @model_validator(mode="after")
    def _one_rank_a_gpu(self):
        if self.gpus and self.tasks != self.gpus:
            raise ValueError(f"{self.tasks} tasks on {self.gpus} GPUs a node; one rank a GPU, so give the same number")
        return self


def _job(**wanted):
    return JobConfig(**wanted)


class SlurmConfig(Section):
    """How the stages become jobs of a cluster."""

    account: str = Field("", pattern=_WORD, description="account that pays; empty: the user's own")
    partition: str = Field("", pattern=_WORD, description="partition of jobs without GPUs; empty: the site's default")
    gpu_partition: str = Field("", pattern=_WORD, description="partition of jobs with GPUs; empty: as partition")
    qos: str = Field("", pattern=_WORD, description="quality of service; empty: the site's default")
    constraint: str = Field("", pattern=_WORD, description="features that the nodes must have")
    options: list[str] = Field([], description="more options of sbatch for every job, as '--mail-type=FAIL'")
    modules: list[str] = Field([], description="modules to load, as 'cuda/13.0'")
    setup: list[str] = Field([], description="lines of shell run before each stage")
    container: str = Field("", description="Apptainer image to run in (slurm/anyecg.def); empty: this environment")
    binds: list[str] = Field([], description="folders that the container sees beside home, run folder and inputs")
    scratch: str = Field("", description="shared folder for the shards, which are large; empty: in the run folder")
    node_local: str = Field("${TMPDIR:-/tmp}", description="folder on each node's own disk; the job's shell expands it")
    stage_shards: bool = Field(False, description="copy the shards to node_local before training, and check the copy")
    mpi: Literal["pmi2", "pmix", "none"] = Field("pmi2", description="srun --mpi; pip's MPICH speaks pmi2")
    signal_seconds: int = Field(300, ge=10, le=65_535, description="how long before the time limit a job is told")
    max_restarts: int = Field(
        10, ge=0, le=1000, description="times that one job is started again before it is given up"
    )
    array_limit: int = Field(0, ge=0, le=10_000, description="sweep: runs at one time, at most; 0: as many as can")
    sweep: dict[str, list[bool | int | float | str]] = Field(
        {}, description='keys and the values each shall take, as "finetune.seed" = [1, 2, 3]; every combination is run'
    )
    cohort: JobConfig = _job(cpus=4, memory="32G", time="04:00:00")
    shard: JobConfig = _job(nodes=2, tasks=16, memory="64G", time="08:00:00")
    finetune: JobConfig = _job(tasks=4, cpus=8, gpus=4, memory="128G", time="12:00:00")
    predict: JobConfig = _job(tasks=4, cpus=8, gpus=4, memory="128G", time="04:00:00")
    evaluate: JobConfig = _job(nodes=2, tasks=16, memory="64G", time="04:00:00")
    report: JobConfig = _job(memory="16G", time="01:00:00")
    profile: JobConfig = _job(tasks=4, cpus=8, gpus=4, memory="128G", time="00:30:00")
    scale: JobConfig = _job(tasks=4, cpus=8, gpus=4, memory="128G", time="01:00:00")

    @model_validator(mode="before")
    @classmethod
    def _fill_jobs(cls, given):
        """What a table of a stage leaves out is that stage's default, not that of any job."""
        if not isinstance(given, dict):
            return given
        filled = dict(given)
        for name, job in given.items():
            field = cls.model_fields.get(name)
            if isinstance(job, dict) and field is not None and isinstance(field.default, JobConfig):
                filled[name] = {**field.default.model_dump(), **job}
        return filled

    @field_validator("options", "modules", "setup", "binds")
    @classmethod
    def _lines(cls, texts):
        for text in texts:
            if not text or "\n" in text:
                raise ValueError(f"{text!r}: wanted one line each")
        return texts

    @field_validator("options")
    @classmethod
    def _long_options(cls, texts):
        for text in texts:
            if not text.startswith("--"):
                raise ValueError(f"{text!r}: wanted a long option of sbatch, as '--mail-type=FAIL'")
        return texts

    @field_validator("sweep")
    @classmethod
    def _grid(cls, sweep):
        n_cells = 1
        for key, values in sweep.items():
            section, dot, name = key.partition(".")
            if section not in SWEPT or not dot or not name:
                raise ValueError(
                    f"'{key}' cannot be swept; wanted a key of {', '.join(SWEPT)}: a sweep shares its shards"
                )
            if not values:
                raise ValueError(f"'{key}' has no values")
            n_cells *= len(values)
        if n_cells > MAX_CELLS:
            raise ValueError(f"{n_cells} combinations; wanted at most {MAX_CELLS}")
        return sweep

    def partition_of(self, job):
        """Return the partition of a job; empty for the site's default."""
        return job.partition or (self.gpu_partition if job.gpus else "") or self.partition
