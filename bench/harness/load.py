"""The load: each function lets one generator run for some seconds and returns what it counted.

A count is a dictionary with `requests`; `bytes`, latencies in milliseconds and others where the generator tells them. A
generator that met an error raises `Failed`: such a round counts for nothing.
"""

import json
import os
import re
import subprocess
import time

from . import cpu, tools
from .paths import BENCH


class Failed(Exception):
    """What went wrong in a round."""


def execute(command, cores, seconds, env=None):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=seconds + 60, env={**os.environ, **(env or {})}, preexec_fn=cpu.pin(cores))
    if done.returncode:
        raise Failed(f"{command[0]}: {done.stdout[-500:]}{done.stderr[-500:]}")
    return done.stdout


def wrk(url, cores, seconds, script="report.lua", connections=64, **env):
    """Keep-alive connections that each send the next request when the answer is there. One thread."""
    output = execute(["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", BENCH / "wrk" / script, url], cores, seconds, {"WRK_SCRIPTS": str(BENCH / "wrk"), **env})
    counted = json.loads(output.strip().splitlines()[-1])
    if counted["bad"] or counted["broken"] or not counted["requests"]:
        raise Failed(f"wrk: {counted['bad']} answers that are not 2xx or 3xx, {counted['broken']} broken connections or time-outs, {counted['requests']} requests")
    counted["p50"], counted["p99"] = counted["p50"] / 1e3, counted["p99"] / 1e3
    return counted


def h2load(url, cores, seconds, connections=10, streams=32):
    """HTTP/2 with many streams a connection."""
    output = execute(["h2load", "-t1", f"-c{connections}", f"-m{streams}", f"-D{seconds}", url], cores, seconds)
    line = re.search(r"requests: (\d+) total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored", output)
    status = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", output)
    if not line or not status or int(line[4]) or int(line[5]) or int(status[3]) or int(status[4]) or not int(status[1]):
        raise Failed(f"h2load: {output[-800:]}")
    total = re.search(r"traffic: .*?\((\d+)\) total", output)
    return {"requests": int(line[2]), "bytes": int(total[1]) if total else 0, "seconds": seconds}


def handshakes(port, path, cores, seconds, clients=4):
    """Full TLS 1.3 handshakes, each with one request, by `openssl s_time`: a new session every time."""
    # It writes `GET {path} HTTP/1.0`; what is needed for HTTP/1.1 goes into the path, and its own version into a field.
    path = f"{path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\nX-Rest:"
    command = ["openssl", "s_time", "-connect", f"127.0.0.1:{port}", "-new", "-tls1_3", "-www", path, "-time", str(seconds)]
    begun = time.monotonic()
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=cpu.pin(cores)) for _ in range(clients)]
    requests = size = 0
    for process in running:
        output = process.communicate(timeout=seconds + 60)[0]
        line = re.search(r"(\d+) connections in \d+ real seconds, (\d+) bytes read per connection", output)
        if process.returncode or not line:
            raise Failed(f"openssl s_time: {output[-500:]}")
        requests += int(line[1])
        size += int(line[1]) * int(line[2])
    return {"requests": requests, "bytes": size, "seconds": time.monotonic() - begun}


def open_model(port, path, cores, seconds, rate, connections=256):
    """Requests at fixed times, whether or not earlier ones were answered; latencies count from those times."""
    output = execute([tools.compiled("open", "load"), port, path, rate, seconds, connections], cores, seconds)
    return checked(json.loads(output))


def burst(port, path, cores, clients):
    """Clients that are connected first and then all ask at once."""
    output = execute([tools.compiled("open", "load"), port, path, "burst", clients], cores, 10)
    return checked(json.loads(output))


def checked(counted):
    if counted["bad"] or counted["broken"]:
        raise Failed(f"{counted['bad']} answers that are not 200, {counted['broken']} broken connections")
    return counted
