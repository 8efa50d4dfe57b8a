"""What the measurement ran on."""

import datetime
import os
import platform
import resource


def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def open_files():
    """Descriptors that a process may have at most."""
    hard, most = resource.getrlimit(resource.RLIMIT_NOFILE)[1], 200_000
    return most if hard == resource.RLIM_INFINITY else min(hard, most)


def describe():
    """Lines of text: processor, cores, memory, kernel, distribution, date."""
    model = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    memory = int(open("/proc/meminfo").readline().split()[1]) / 1024 / 1024
    name = next((line.split("=", 1)[1].strip().strip('"') for line in open("/etc/os-release") if line.startswith("PRETTY_NAME=")), platform.system())
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory": f"{memory:.0f} GiB",
        "kernel": platform.release(),
        "system": name,
        "date": now(),
    }
