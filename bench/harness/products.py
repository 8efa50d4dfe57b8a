"""The servers under measurement: how each is started, on which ports it listens, and how its log is found."""

import getpass
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

from . import cpu, tools
from .paths import BENCH, RUN

SERVERS = BENCH / "servers"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Settings:
    """What configurations are filled in with: one for all products of a run."""

    def __init__(self, cores, **values):
        self.cores = cores
        self.values = values


class Server:
    """A process started for a measurement, with its ports by name."""

    def __init__(self, name, folder, cores):
        self.name, self.cores = name, cores
        self.run = RUN / folder
        self.ports = {}
        self.process = None

    def launch(self, command, env=None, stdout=None):
        self.log = self.run / "stdout.log" if stdout is None else stdout
        with open(self.run / "stderr.log", "wb") as errors, open(self.log, "ab") as output:
            self.process = subprocess.Popen([str(part) for part in command], cwd=self.run, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env={**os.environ, **(env or {})}, preexec_fn=cpu.pin(self.cores))

    def wait(self, *ports):
        """Until it accepts on these ports. Ends the program with the server's own words if it does not."""
        end = time.monotonic() + 30
        for port in ports:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    if self.process.poll() is not None or time.monotonic() > end:
                        words = "".join((self.run / name).read_text(errors="replace")[-3000:] for name in ("stderr.log", "stdout.log", "error.log") if (self.run / name).exists())
                        self.stop()
                        raise SystemExit(f"{self.name} did not start:\n{words}")
                    time.sleep(0.02)

    def pids(self):
        return cpu.tree(self.process.pid)

    def stop(self):
        if not self.process or self.process.poll() is not None:
            return
        pids = self.pids()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            pass
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()


def fresh(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def filled(template, to, values):
    """Writes a configuration with its @NAMES@ filled in."""
    text = template.read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    to.write_text(text)
    return to


class Product:
    """One kind of server. `config`: its file in bench/servers/NAME/. `doors`: the names of its ports."""

    name = title = config = ""
    tools = ()
    doors = ("HTTP", "TLS", "H2C")
    # Which doors serve forwards and HTTP/2.
    gateway, h2 = "HTTP", "H2C"

    def __init__(self, settings):
        self.settings = settings

    def start(self, **more):
        """Starts one, with settings that a row wants otherwise. Returns a Server that accepts connections."""
        server = Server(self.name, self.name.replace("/", "_"), self.settings.cores)
        fresh(server.run)
        server.ports = {door: free_port() for door in self.doors}
        values = {**self.settings.values, **more, **server.ports, "RUN": server.run, "HERE": SERVERS / self.folder()}
        self.launch(server, values)
        server.wait(*[server.ports[door] for door in self.awaited(values)])
        return server

    def folder(self):
        return self.name

    def awaited(self, values):
        return self.doors

    def configuration(self, server, values):
        return filled(SERVERS / self.folder() / self.config, server.run / self.config, values)

    def hit(self, headers):
        """Whether an answer says that it came from the cache."""
        return headers.get("x-cache-status") == "HIT"

    def log_file(self, server):
        """The access log, where it is a file of lines."""
        return None

    def version(self):
        raise NotImplementedError


def first_line(command, pick=lambda line: line):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    return pick(next(line for line in (done.stdout + done.stderr).splitlines() if line.strip()).strip())


class Nginx(Product):
    name, title, config, tools = "nginx", "nginx", "nginx.conf", ("nginx",)

    def launch(self, server, values):
        # Started by root, workers would become a user who may not write here.
        values["USER"] = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
        config = self.configuration(server, values)
        env = {"TOKEN_SECRET": values["SECRET"], "TOKEN_CACHE": str(max(int(values["TOKEN_CACHE"]), 1)), "REDIS_PORT": str(values["REDIS"])}
        server.launch(["nginx", "-p", server.run, "-c", config, "-g", "daemon off;"], env)

    def log_file(self, server):
        return server.run / "access.log"

    def version(self):
        return first_line(["nginx", "-v"], lambda line: line.split("/")[-1])


class NginxLua(Nginx):
    name, title, tools = "nginx-lua", "nginx+Lua", ("nginx-lua",)
    doors = ("HTTP",)


class HAProxy(Product):
    name, title, config, tools = "haproxy", "HAProxy", "haproxy.cfg", ("haproxy",)

    def launch(self, server, values):
        key = values["SECRET"] if values["ALG"] == "HS256" else values["PUBLIC_KEY"]
        config = self.configuration(server, {**values, "SECRET_OR_KEY": key})
        server.launch(["haproxy", "-f", config, "-db"])

    def version(self):
        return first_line(["haproxy", "-v"], lambda line: line.split()[2])


class Varnish(Product):
    name, title, config, tools = "varnish", "Varnish", "default.vcl", ("varnish",)
    doors, h2 = ("HTTP",), "HTTP"

    def launch(self, server, values):
        config = self.configuration(server, values)
        options = ["-p", "feature=+http2", "-p", "thread_pools=1", "-p", "thread_pool_min=100", "-p", "thread_pool_max=2000", "-p", "timeout_idle=3600"]
        server.launch(["varnishd", "-F", "-n", server.run / "vsm", "-a", f"127.0.0.1:{values['HTTP']}", "-f", config, "-s", "malloc,1g", *options])

    def version(self):
        return first_line(["varnishd", "-V"], lambda line: line.split("varnish-")[1].split()[0])


class Envoy(Product):
    name, title, config, tools = "envoy", "Envoy", "envoy.yaml", ("envoy",)
    doors, h2 = ("HTTP", "TLS", "ADMIN"), "HTTP"

    def launch(self, server, values):
        size = int(values["TOKEN_CACHE"])
        config = self.configuration(server, {**values, "JWT_CACHE": f"jwt_cache_config: {{ jwt_cache_size: {size} }}" if size > 1 else ""})
        server.launch([tools.envoy(), "-c", config, "--concurrency", "1", "--disable-hot-restart", "-l", "warn"])

    def log_file(self, server):
        return server.run / "access.log"

    def hit(self, headers):
        return "age" in headers

    def version(self):
        return first_line([tools.envoy(), "--version"], lambda line: line.split("/")[-4])


class Bun(Product):
    name, title, config, tools = "bun", "Bun", "server.ts", ("bun",)
    doors = ("HTTP",)

    def launch(self, server, values):
        env = {name: str(values[name]) for name in ("HTTP", "ORIGIN", "SECRET", "REDIS", "TOKEN_CACHE", "STORE")}
        server.launch([tools.bun(), "run", SERVERS / "bun" / "server.ts"], env)

    def version(self):
        return first_line([tools.bun(), "--version"])


class Floor(Product):
    name, title = "floor", "floor"
    doors = ("HTTP",)

    def launch(self, server, values):
        server.launch([tools.compiled("floor", "floor"), values["HTTP"], "--keys", values["KEYS"]])

    def version(self):
        return "epoll loop in C"


class Weir(Product):
    """`binary` and `label`: several builds can be measured side by side."""

    name, title, config, tools = "weir", "Weir", "weir.yaml", ()
    doors = ("HTTP", "TLS", "GATEWAY", "ADMIN")
    gateway, h2 = "GATEWAY", "HTTP"

    def __init__(self, settings, binary, label=None):
        super().__init__(settings)
        self.binary = str(pathlib.Path(binary).resolve())
        if label:
            self.name = self.title = label

    def folder(self):
        return "weir"

    def awaited(self, values):
        return [door for door in self.doors if door != "TLS" or values.get("WITH_TLS")]

    def launch(self, server, values):
        listen = f"127.0.0.1:{values['HTTP']}"
        if values.get("WITH_TLS"):
            listen = f"[{listen}, 127.0.0.1:{values['TLS']} tls]\n  certificates: [{{ cert: {values['CERT']}, key: {values['KEY']} }}]"
        config = self.configuration(server, {**values, "LISTEN": listen})
        server.launch([self.binary, "run", "-c", config])

    def log_file(self, server):
        return server.run / "stdout.log"

    def version(self):
        commit = first_line(["git", "-C", str(BENCH), "rev-parse", "--short", "HEAD"])
        return first_line([self.binary, "--version"], lambda line: line.split()[-1]) + f" ({commit})"


CLASSES = {kind.name: kind for kind in (Weir, Nginx, NginxLua, HAProxy, Varnish, Envoy, Bun, Floor)}


class Helpers:
    """What stands around the servers: the origin and the log's sink on the load's core, Redis, a certificate."""

    def __init__(self, load_core, server_core):
        self.load_core, self.server_core = load_core, server_core
        self.servers = []

    def launch(self, name, command, port, core):
        server = Server(name, name, {core})
        fresh(server.run)
        self.servers.append(server)
        server.launch(command)
        server.wait(port)
        return port

    def origin(self):
        port = free_port()
        return self.launch("origin", [tools.compiled("floor", "floor"), port], port, self.load_core)

    def sink(self):
        port = free_port()
        return self.launch("sink", [tools.compiled("floor", "floor"), port, "--sink"], port, self.load_core)

    def redis(self):
        """On the load's core, and not counted: the row is about what stands before it."""
        port = free_port()
        return self.launch("redis", ["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"], port, self.load_core)

    def certificate(self):
        """A P-256 certificate that nobody has to believe."""
        folder = RUN / "tls"
        fresh(folder)
        tools.need("openssl")
        key, cert, both = folder / "key.pem", folder / "cert.pem", folder / "both.pem"
        tools.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", cert])
        both.write_text(cert.read_text() + key.read_text())
        return {"CERT": cert, "KEY": key, "PEM": both}

    def stop(self):
        for server in self.servers:
            server.stop()
