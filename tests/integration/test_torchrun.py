"""Two agents of torchrun, as on two machines: whatever is killed, the run resumes by itself."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.conftest import environment

TIMEOUT_SEC = 150


@pytest.fixture
def start_agent(tmp_path):
    """Starts an agent with one rank; all agents are killed at the end, with their ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agents = []

    def start(is_host, arguments):
        launcher = ["--nnodes=2", "--nproc_per_node=1", "--max-restarts=3", "--rdzv_id=test"]
        launcher += ["--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}"]
        launcher += [f"--rdzv_conf=is_host={is_host}", "-m", "hiera_video"]
        with (tmp_path / f"agent_{len(agents)}.log").open("w") as log:
            agent = subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", *launcher, *arguments],
                env=environment(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1"),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        agents.append(agent)
        return agent

    yield start
    for agent in agents:
        if agent.poll() is None:
            os.killpg(agent.pid, signal.SIGKILL)


def rank_of(agent):
    """The process id of the only rank of an agent."""
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    (rank,) = (c for c in children if b"hiera_video" in Path(f"/proc/{c}/cmdline").read_bytes())
    return int(rank)


def test_a_killed_rank_and_a_lost_machine(commands, tmp_path, start_agent, weights_of, lines_of):
    overrides = ("train.epochs=60", "train.checkpoint_every=5", "train.ema_decay=0.9")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    results = commands.together(*commands.finetune(whole, *overrides))
    assert [result.code for result in results] == [0, 0], results

    metrics, arguments = broken / "metrics.jsonl", commands.finetune(broken, *overrides)
    deadline = time.monotonic() + TIMEOUT_SEC

    def wait_for_steps(number):
        while not metrics.exists() or metrics.read_text().count("\n") < number:
            assert time.monotonic() < deadline, (tmp_path / "agent_0.log").read_text()
            time.sleep(0.01)

    host, other = start_agent(True, arguments), start_agent(False, arguments)
    wait_for_steps(40)
    os.kill(rank_of(other), signal.SIGKILL)
    wait_for_steps(metrics.read_text().count("\n") + 20)
    for process in (other.pid, rank_of(other)):
        os.kill(process, signal.SIGKILL)
    other.wait()
    replaced = start_agent(False, arguments)
    for agent in (host, replaced):
        assert agent.wait(max(0, deadline - time.monotonic())) == 0

    assert weights_of(broken) == weights_of(whole)
    losses = [[line["loss"] for line in lines_of(run / "metrics.jsonl")] for run in (broken, whole)]
    assert losses[0] == losses[1]
    assert (broken / "train.log").read_text().count("resumed from") >= 2
