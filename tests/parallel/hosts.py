"""Starts train.py, or its like, as several processes that find each other on 127.0.0.1."""

import json
import os
import socket
import subprocess
import sys

from tests.small.run import ROOT


def evaluate(count: int, flags: list[str]) -> dict:
    """Runs eval.py as `count` processes with two devices in all; what the first one found."""
    results = start(count, flags, devices=2 // count, program=("eval.py",))
    assert all(code == 0 for code, _, _ in results), results
    return json.loads(results[0][1].splitlines()[-1])


def start(
    count: int,
    flags: list[str],
    *,
    devices: int = 1,
    flags_of=lambda host: (),
    root_of=lambda host: ROOT,
    program: tuple[str, ...] = ("train.py",),
    timeout: float = 1500,
) -> list:
    """Runs a program as `count` processes to their end.

    Args:
        count: how many processes.
        flags: of all of them.
        devices: forced CPU devices of each.
        flags_of: further flags of a process, by its number.
        root_of: where a process starts, by its number.
        program: what Python is to run.
        timeout: seconds after which they are given up.

    Returns:
        For each process, (exit code, standard output, standard error).
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    xla_flags = os.environ.get("XLA_FLAGS", "")
    environment = os.environ | {
        "XLA_FLAGS": f"{xla_flags} --xla_force_host_platform_device_count={devices}",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, *program, *flags]
    if count > 1:
        command += [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}"]
    hosts = []
    for number in range(count):
        own = [f"--process_id={number}", *flags_of(number)] if count > 1 else []
        hosts.append(
            subprocess.Popen(
                [*command, *own],
                cwd=root_of(number),
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        outputs = [host.communicate(timeout=timeout) for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    return [(host.returncode, *output) for host, output in zip(hosts, outputs, strict=True)]
