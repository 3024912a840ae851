import os
import signal
import socket
import subprocess
import sys

# A rank under Slurm: says what it is told, and what is said to it after the signals that ask for a stop.
RANK = """
import os, socket
from anyecg.loaders.pmi import keep_requests_short
keep_requests_short()
slurm = socket.socket(fileno=int(os.environ["PMI_FD"]))
for request in (b"cmd=get_maxes", b"cmd=put kvsname=1.0 key=a value=" + b"3" * 512, b"cmd=finalize"):
    slurm.sendall(request + b"\\n")
    print(slurm.recv(4096).decode().strip(), flush=True)
"""


def test_mpi_is_told_of_values_that_fit_slurms_requests_and_all_else_is_passed_on():
    slurm, given = socket.socketpair()
    os.set_inheritable(given.fileno(), True)
    rank = subprocess.Popen(
        [sys.executable, "-c", RANK], env={**os.environ, "PMI_FD": str(given.fileno())}, pass_fds=[given.fileno()],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    given.close()
    assert slurm.recv(4096) == b"cmd=get_maxes\n"
    slurm.sendall(b"cmd=maxes rc=0 kvsname_max=256 keylen_max=64 vallen_max=1024\n")
    assert slurm.recv(4096) == b"cmd=put kvsname=1.0 key=a value=" + b"3" * 512 + b"\n"
    slurm.sendall(b"cmd=put_result rc=0\n")
    assert slurm.recv(4096) == b"cmd=finalize\n"
    # To all processes of the task: the one between lives on, and ends with the rank.
    os.killpg(rank.pid, signal.SIGUSR1)
    assert slurm.recv(4096) == b""
    said, _ = rank.communicate(timeout=60)
    assert said.splitlines() == [
        "cmd=maxes rc=0 kvsname_max=256 keylen_max=64 vallen_max=512", "cmd=put_result rc=0"
    ]  # fmt: skip
    slurm.close()


def test_without_slurms_socket_nothing_is_started(monkeypatch):
    from anyecg.loaders.pmi import keep_requests_short

    monkeypatch.delenv("PMI_FD", raising=False)
    keep_requests_short()
    assert "PMI_FD" not in os.environ
