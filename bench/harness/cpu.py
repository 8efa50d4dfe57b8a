"""What processes used: CPU time and memory of a process with all its threads and children, from /proc."""

import os
import pathlib

PROC = pathlib.Path("/proc")


def tree(root):
    """The process and everything that descends from it."""
    children = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                # The command's name is in parentheses and may hold anything; the parent is the second field after it.
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children.get(pid, [])
    return found


def nanoseconds(pids):
    """CPU time of all threads of these processes: the first number of schedstat, time on a CPU in nanoseconds."""
    total = 0
    for pid in pids:
        try:
            for task in os.scandir(f"/proc/{pid}/task"):
                with open(f"{task.path}/schedstat") as file:
                    total += int(file.read().split()[0])
        except (OSError, ValueError):
            continue
    return total


def resident(pids):
    """Resident memory in bytes: proportional set size, so that pages shared by several processes count once."""
    total = 0
    for pid in pids:
        try:
            for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        except OSError:
            continue
    return total


def pin(cores):
    """For subprocess: the child runs on these cores only."""
    return lambda: os.sched_setaffinity(0, cores)
