"""A Slurm of one node, on this machine, until the block ends.

In: a folder. Out: `SLURM_CONF`, with which Slurm's own commands reach it. Needs root, and slurm-wlm of Debian
or Ubuntu, which brings munge along. The processors and GPUs that Slurm counts need not be there.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
CONFIGURATION = """
ClusterName=one
SlurmctldHost={host}
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={host} CPUs=16 RealMemory=65536 Gres=gpu:4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def lacking() -> str | None:
    """Why there can be no Slurm here, None where there can."""
    programs = [name for name in PROGRAMS if not shutil.which(name, path=_path())]
    if programs:
        return f"no {', '.join(programs)} here: apt-get install slurm-wlm"
    return None if os.geteuid() == 0 else "a Slurm of one node is started by root"


@contextmanager
def one_node(folder: Path) -> Iterator[Path]:
    """Start it; the path for SLURM_CONF."""
    host, ports = socket.gethostname().partition(".")[0], _free_ports(2)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    text = CONFIGURATION.format(host=host, controller=ports[0], node=ports[1], folder=folder)
    configuration = folder / "slurm.conf"
    configuration.write_text(text)
    devices = [f"Name=gpu File=/dev/{name}\n" for name in ("null", "zero", "full", "random")]
    (folder / "gres.conf").write_text("".join(devices))  # what is no GPU, and is on every machine
    environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(configuration)}
    running: list[subprocess.Popen[bytes]] = []
    try:
        if not Path("/run/munge/munge.socket.2").is_socket():
            running.append(_munge(environment))
        for daemon in ("slurmctld", "slurmd"):
            running.append(
                subprocess.Popen([daemon, "-D"], env=environment, stderr=subprocess.DEVNULL)
            )
        _wait_until_idle(environment)
        yield configuration
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait()


def _munge(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    owner = pwd.getpwnam("munge")
    Path("/run/munge").mkdir(exist_ok=True)
    os.chown("/run/munge", owner.pw_uid, owner.pw_gid)
    return subprocess.Popen(
        ["munged", "--foreground"], env=environment, user="munge", group="munge", extra_groups=[]
    )


def _wait_until_idle(environment: dict[str, str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done = subprocess.run(
            ["sinfo", "--noheader", "--format", "%T"],
            capture_output=True,
            text=True,
            env=environment,
        )
        if done.stdout.split() == ["idle"]:
            return
        time.sleep(0.5)
    raise TimeoutError(f"Slurm has not come up: {done.stdout}{done.stderr}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
