"""A Slurm of one node: its daemons, started in a folder of their own and stopped again."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")

# The node claims 16 CPUs and 64 GB, which the jobs' options ask for; `config_overrides` makes Slurm believe it.
CONF = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.sock
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory=64000
PartitionName=main Nodes=ALL Default=YES State=UP
"""


@contextmanager
def slurm_node(folder: Path) -> Iterator[dict[str, str]]:
    """The variables under which Slurm's commands reach the node; skips where it cannot be started."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if missing := [name for name in PROGRAMS if shutil.which(name, path=path) is None]:
        pytest.skip(f"NO SLURM HERE: {', '.join(missing)} not found; apt-get install slurmd slurmctld munge")
    if os.geteuid() != 0:
        pytest.skip("NO SLURM HERE: slurmd starts as root only")
    (folder / "state").mkdir(parents=True)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    conf = CONF.format(folder=folder, host=socket.gethostname().partition(".")[0], ports=_free_ports(2), user="root")
    (folder / "slurm.conf").write_text(conf)
    variables = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    commands = [
        ["munged", "--force", "--foreground", f"--socket={folder}/munge.sock", *munge],
        ["slurmctld", "-D"],
        ["slurmd", "-D"],
    ]
    daemons = []
    try:
        for command in commands:
            with (folder / f"{command[0]}.out").open("wb") as out:
                daemons.append(subprocess.Popen(command, env=os.environ | variables, stdout=out, stderr=out))
            time.sleep(1)
        _wait_until_idle(os.environ | variables, folder)
        yield variables
    finally:
        with suppress(OSError):
            subprocess.run(["scancel", "--user=root"], env=os.environ | variables, check=False, timeout=30)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)


def _wait_until_idle(env: dict[str, str], folder: Path) -> None:
    for _ in range(40):
        found = subprocess.run(["sinfo", "-h", "-o", "%t"], env=env, capture_output=True, text=True, check=False)
        if found.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    logs = [f"{path.name}: {path.read_text(errors='replace')[-300:]}" for path in sorted(folder.glob("*.log"))]
    pytest.skip(f"SLURM DID NOT START: node state {found.stdout.strip()!r}; {' '.join(logs)}")


def _free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
