"""A real Slurm on this machine: munged, slurmctld and several slurmd, configured in one folder of their own."""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun")
# Requeued jobs wait for as long as a credential lives: 120 s at most sites.
SECONDS_OF_CREDENTIAL = 5
CONF = """\
ClusterName=anyecg
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/run/munge.sock,cred_expire={credential}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd.%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/linux
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
MinJobAge=3600
SlurmdTimeout=10
SlurmdParameters=config_overrides
{nodes}
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing():
    """Return why no Slurm can be brought up here; empty where it can."""
    if os.geteuid():
        return "a Slurm of its own needs root"
    lost = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"{', '.join(lost)} missing; 'make test-system' installs Debian's Slurm" if lost else ""


class Cluster:
    """A Slurm whose nodes are processes of this machine; ``features`` names the feature of each node, n1, n2 and on.

    Attributes
    ----------
    environment : dict
        For the commands of Slurm, and for ``anyecg``.
    """

    def __init__(self, root, features, *, cpus=8):
        self.root, self.nodes = Path(root), {f"n{n}": feature for n, feature in enumerate(features, 1)}
        self.environment = {**os.environ, "SLURM_CONF": str(self.root / "slurm.conf")}
        for name in ("state", "log", "run", "spool"):
            (self.root / name).mkdir(parents=True)
        # munged wants every folder above its socket to be beyond the reach of others.
        self.root.chmod(0o755), (self.root / "run").chmod(0o755)
        host, (port, *ports) = socket.gethostname().partition(".")[0], _free_ports(len(self.nodes) + 1)
        lines = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={number} CPUs={cpus} RealMemory=16000 "
            f"Feature={feature} State=UNKNOWN"
            for (name, feature), number in zip(self.nodes.items(), ports, strict=True)
        ]
        self._write("slurm.conf", CONF.format(
            host=host, port=port, root=self.root, credential=SECONDS_OF_CREDENTIAL, nodes="\n".join(lines)
        ))  # fmt: skip
        self._write("run/munge.key", os.urandom(64).hex())
        (self.root / "run/munge.key").chmod(0o600)
        self._slurmd: dict[str, subprocess.Popen] = {}
        self.lost: list[str] = []
        self._others: list[subprocess.Popen] = []

    def _write(self, name, text):
        (self.root / name).write_text(text)

    def start(self):
        """Start the daemons and wait until all nodes are idle."""
        run = self.root / "run"
        self._others.append(self._daemon(
            "munged", "--foreground", "--force", f"--socket={run}/munge.sock", f"--key-file={run}/munge.key",
            f"--pid-file={run}/munged.pid", f"--seed-file={run}/munged.seed", f"--log-file={self.root}/log/munged.log",
        ))  # fmt: skip
        self.wait(lambda: (run / "munge.sock").exists(), "munged")
        self._others.append(self._daemon("slurmctld", "-D"))
        for name in self.nodes:
            self.start_node(name)
        self.wait(lambda: self.said("sinfo", "-h", "-N", "-t", "idle", "-p", "batch").count("\n") == len(self.nodes),
                  "the nodes idle")  # fmt: skip

    def _daemon(self, *command, **environment):
        with (self.root / "log" / f"{command[0]}.out").open("ab") as out:
            return subprocess.Popen(
                command, env={**self.environment, **environment}, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip

    def start_node(self, name):
        """Start, or start again, the slurmd of a node."""
        (self.root / "spool" / name).mkdir(exist_ok=True)
        self._slurmd[name] = self._daemon("slurmd", "-D", "-N", name, ANYECG_TEST_NODE=f"{self.root}/{name}")

    def lose_node(self, name):
        """End a node with all that runs on it, as a power cut would; ``revive`` starts it again."""
        self.lost.append(name)
        self._slurmd[name].kill()
        self._slurmd[name].wait()
        self._kill(lambda found: found.get("ANYECG_TEST_NODE") == f"{self.root}/{name}" or (
            found.get("SLURM_CONF") == self.environment["SLURM_CONF"] and found.get("SLURMD_NODENAME") == name
        ))  # fmt: skip

    def revive(self):
        """Start the lost nodes that Slurm has found to be down."""
        for name in list(self.lost):
            if "DOWN" in self.said("scontrol", "show", "node", name):
                self.lost.remove(name)
                self.start_node(name)

    def _kill(self, is_meant):
        for process in Path("/proc").iterdir():
            if process.name.isdigit() and int(process.name) != os.getpid():
                with suppress(OSError):
                    variables = (process / "environ").read_bytes().decode(errors="replace").split("\0")
                    if is_meant(dict(text.split("=", 1) for text in variables if "=" in text)):
                        os.kill(int(process.name), signal.SIGKILL)

    def said(self, *command):
        """Return what a command of Slurm prints; empty if it fails."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=60,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return done.stdout if done.returncode == 0 else ""

    def wait(self, is_so, what, seconds=60):
        """Wait until something is so."""
        end = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > end:
                raise TimeoutError(f"{what}: not within {seconds} s; see {self.root}/log")
            time.sleep(0.1)

    def stop(self):
        """End all that was started, jobs too."""
        self.said("scancel", "--me")
        # A slurmd needs the controller, and that needs munged, until its end.
        for together in (self._slurmd.values(), *([process] for process in reversed(self._others))):
            for process in together:
                process.terminate()
            for process in together:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=20)
                process.kill()
                process.wait()
        ours = (self.environment["SLURM_CONF"], *(f"{self.root}/{name}" for name in self.nodes))
        self._kill(lambda found: found.get("SLURM_CONF") in ours or found.get("ANYECG_TEST_NODE") in ours)


def _free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    found = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return found


@contextmanager
def running(root, features, **options):
    """Give a cluster for a while."""
    cluster = Cluster(root, features, **options)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
