"""The rows of the comparison: what is asked, by which load, of whom, and what must come back.

A row's value is CPU time of the server's processes in µs a request, unless it says otherwise. `bars` are the ratios that Weir
wants to reach: (other product, factor), all within this row.
"""

import time
import types

from . import checks, load


class Row:
    name = title = ""
    products = ()
    bars = ()
    unit = "µs CPU a request"
    tools = ("wrk",)
    cached = False       # answers come from the cache: the origin must not notice the load
    forwards = False     # every request reaches the origin
    memory = False       # the servers' resident memory is part of the result
    length = checks.PAGE

    def __init__(self, options):
        self.options = options

    def settings(self, product):
        """What this row wants otherwise in the product's configuration."""
        return {}

    def label(self, product):
        return product.title

    def port(self, product, server):
        return server.ports[product.gateway if self.forwards else "HTTP"]

    def path(self, product):
        return "/page"

    def prepare(self, product, server):
        """Once, after the start: the first answers, until one comes from the cache if it should."""
        for _ in range(40):
            answer = self.ask(product, server)
            if not self.cached or product.hit(answer[1]):
                return
            time.sleep(0.05)  # storing may go on after the answer

    def check(self, product, server):
        """Before and after each round."""
        checks.expect(product, self.ask(product, server), self.length, self.cached)

    def ask(self, product, server):
        return checks.ask(self.port(product, server), self.path(product))

    def load(self, product, server, seconds):
        return load.wrk(f"http://127.0.0.1:{self.port(product, server)}{self.path(product)}", self.options.load_cores, seconds)

    def notes(self, counted, memory):
        """Sentences below the table. `counted`: what the generators counted, by product and round."""
        return []


class Page(Row):
    name, title = "page", "10 KB page from memory"
    products = ("weir", "nginx", "haproxy", "varnish", "envoy", "bun", "floor")
    bars = (("nginx", 0.65), ("haproxy", 0.70), ("floor", 1.5))
    cached = True


class Keys(Row):
    name = "keys"
    products = ("weir", "nginx", "haproxy", "varnish", "bun", "floor")
    bars = (("nginx", 0.65),)
    cached = True
    memory = True

    def __init__(self, options):
        super().__init__(options)
        self.title = f"the same, hits over {options.keys:,} pages"

    def settings(self, product):
        return {"KEYS": self.options.keys}

    def path(self, product):
        return "/p/0"

    def spread(self, server, product, seconds):
        url = f"http://127.0.0.1:{self.port(product, server)}/"
        return load.wrk(url, self.options.load_cores, seconds, "keys.lua", KEYS=str(self.options.keys))

    def prepare(self, product, server):
        """Every page is asked for before anything is measured: until a run over all of them leaves the origin alone."""
        for seconds in (2, 4, 8, 16, 32, 64):
            before = checks.origin_count(self.options.origin_port)
            asked = self.spread(server, product, seconds)["requests"]
            if asked >= self.options.keys and checks.origin_count(self.options.origin_port) == before:
                return
        raise load.Failed(f"{product.name}: {self.options.keys} pages are not in the cache after two minutes")

    def check(self, product, server):
        for key in range(0, self.options.keys, max(1, self.options.keys // 20)):
            got = checks.ask(self.port(product, server), f"/p/{key}")
            checks.expect(product, got, self.length, True)
            if f"page {key} ".encode() not in got[2]:
                raise load.Failed(f"{product.name}: /p/{key} is another page")

    def load(self, product, server, seconds):
        return self.spread(server, product, seconds)

    def notes(self, counted, memory):
        stored, notes = self.options.keys * self.length, []
        for product, resident in memory.items():
            if product.name == "weir":
                bar = 1.15 * stored + 40e6
                notes.append(f"Weir holds {stored / 1e6:,.0f} MB of pages in {resident / 1e6:,.0f} MB; bar: at most {bar / 1e6:,.0f} MB: {'met' if resident <= bar else '**missed**'}")
        return notes


class Redis(Keys):
    """Over many pages: requests for one page at the same time may share one answer of Redis, which is not what is asked here."""

    name, title = "redis", "10 KB page from Redis"
    products = ("weir", "bun", "nginx-lua")
    bars = (("bun", 0.60),)
    tools = ("wrk", "redis")
    memory = False
    pages = 5_000

    def __init__(self, options):
        super().__init__(types.SimpleNamespace(**{**vars(options), "keys": self.pages}))
        self.title = Redis.title

    def settings(self, product):
        return {"CACHE_MEMORY": "0", "STORE": f"redis://127.0.0.1:{self.options.redis_port}/0"}

    def load(self, product, server, seconds):
        before = checks.redis_commands(self.options.redis_port)
        counted = super().load(product, server, seconds)
        commands = checks.redis_commands(self.options.redis_port) - before
        if commands < 0.95 * counted["requests"]:
            raise load.Failed(f"{product.name}: only {commands} commands came to Redis for {counted['requests']} requests")
        return {**counted, "commands": commands}

    def notes(self, counted, memory):
        return []


class Forward(Row):
    name, title = "forward", "forward 2 KB JSON"
    products = ("weir", "nginx", "haproxy", "envoy", "bun")
    bars = (("nginx", 0.85), ("bun", 0.60))
    forwards = True
    length = checks.JSON

    def path(self, product):
        return "/json"


class Post(Forward):
    """The same with a short body, as orders, carts and logins have it."""

    name, title = "post", "the same, asked with POST and a body of 200 bytes"
    bars = ()
    body = b'{"sku":"shoe-1","quantity":2,"note":"' + b"x" * 161 + b'"}'

    def ask(self, product, server):
        return checks.ask(self.port(product, server), self.path(product), {"Content-Type": "application/json"}, body=self.body)

    def check(self, product, server):
        super().check(product, server)
        arrived = self.ask(product, server)[1].get("x-received")
        if arrived != str(len(self.body)):
            raise load.Failed(f"{product.name}: {arrived} bytes of the body came to the origin instead of {len(self.body)}")

    def load(self, product, server, seconds):
        url = f"http://127.0.0.1:{self.port(product, server)}{self.path(product)}"
        return load.wrk(url, self.options.load_cores, seconds, "post.lua", BODY=self.body.decode())


class Token(Forward):
    """A token that was seen before, a limit for each user, and the forward; nginx forwards without either."""

    name, title = "token", "HS256 token + limit + forward"
    products = ("weir", "nginx-lua", "nginx", "haproxy", "envoy", "bun")
    bars = (("nginx-lua", 0.75), ("nginx", 1.0))
    plain = "nginx"
    algorithm = "HS256"

    def label(self, product):
        return f"{product.title} (plain forward)" if product.name == self.plain else product.title

    def settings(self, product):
        return self.options.tokens.settings(self.algorithm)

    def path(self, product):
        return "/json" if product.name == self.plain else "/token"

    def prepare(self, product, server):
        self.load(product, server, 1)

    def check(self, product, server):
        port, path = self.port(product, server), self.path(product)
        if product.name == self.plain:
            return super().check(product, server)
        token = self.options.tokens.made(self.algorithm)[0]
        for bad in (None, token[:-6] + "AAAAAA", self.options.tokens.expired(self.algorithm)):
            checks.expect(product, checks.ask(port, path, {"Authorization": f"Bearer {bad}"} if bad else {}), None, status=401)
        checks.expect(product, checks.ask(port, path, {"Authorization": f"Bearer {token}"}), self.length)

    def load(self, product, server, seconds):
        if product.name == self.plain:
            return super().load(product, server, seconds)
        url = f"http://127.0.0.1:{self.port(product, server)}{self.path(product)}"
        return load.wrk(url, self.options.load_cores, seconds, "tokens.lua", TOKENS=str(self.options.tokens.file(self.algorithm)))


class Rs256(Token):
    """The same when hardly any token was seen before: more tokens in turn than are remembered."""

    name, title = "rs256", "RS256 token, verified each time, + limit + forward"
    products = ("weir", "haproxy", "envoy")
    bars = ()
    algorithm = "RS256"

    def settings(self, product):
        return {**super().settings(product), "TOKEN_CACHE": 1}


class Es256(Rs256):
    name, title, algorithm = "es256", "ES256 token, verified each time, + limit + forward", "ES256"


class Tls(Page):
    name, title = "tls", "10 KB page, TLS 1.3 keep-alive"
    products = ("weir", "nginx", "haproxy", "envoy")
    bars = (("nginx", 0.80),)

    def settings(self, product):
        return {"WITH_TLS": True}

    def port(self, product, server):
        return server.ports["TLS"]

    def ask(self, product, server):
        return checks.ask(self.port(product, server), self.path(product), tls=True)

    def load(self, product, server, seconds):
        return load.wrk(f"https://127.0.0.1:{self.port(product, server)}{self.path(product)}", self.options.load_cores, seconds)


class Handshake(Tls):
    name, title = "handshake", "full TLS 1.3 handshake + page"
    bars = (("nginx", 0.85),)
    tools = ("openssl",)

    def load(self, product, server, seconds):
        return load.handshakes(self.port(product, server), self.path(product), self.options.load_cores, seconds)


class H2(Page):
    name, title = "h2", "10 KB page, HTTP/2 cleartext, 10 connections × 32 streams"
    products = ("weir", "nginx", "haproxy", "varnish", "envoy")
    bars = (("nginx", 1.0),)
    tools = ("h2load",)

    def h2_port(self, product, server):
        return server.ports[product.h2]

    def check(self, product, server):
        super().check(product, server)
        # The same answer by HTTP/2: h2load fails the round when a status is not 2xx; the length is checked by the bytes below.
        counted = load.h2load(f"http://127.0.0.1:{self.h2_port(product, server)}{self.path(product)}", self.options.load_cores, 1, 1, 1)
        if counted["bytes"] < counted["requests"] * self.length:
            raise load.Failed(f"{product.name}: HTTP/2 answers are too short")

    def load(self, product, server, seconds):
        return load.h2load(f"http://127.0.0.1:{self.h2_port(product, server)}{self.path(product)}", self.options.load_cores, seconds)


class OpenModel(Page):
    name = "p99"
    products = ("weir", "nginx", "haproxy", "floor")
    bars = (("nginx", 1.0),)
    unit = "ms, p99"
    tools = ()

    def __init__(self, options):
        super().__init__(options)
        self.title = f"p99 at {options.rate:,} requests a second, open model, page from memory"

    def load(self, product, server, seconds):
        counted = load.open_model(server.ports["HTTP"], self.path(product), self.options.load_cores, seconds, self.options.rate)
        return {**counted, "value": counted["p99"]}


class Stampede(Row):
    name = "stampede"
    products = ("weir", "nginx", "varnish")
    unit = "ms over the origin's time, p99"
    tools = ()
    limit = 50.0
    origin_ms = 300
    forwards = False

    def __init__(self, options):
        super().__init__(options)
        self.title = f"{options.clients:,} clients wait for one page that the origin makes in {self.origin_ms} ms"
        self.turn = 0

    def prepare(self, product, server):
        checks.ask(server.ports["HTTP"], "/page")

    def check(self, product, server):
        checks.expect(product, checks.ask(server.ports["HTTP"], "/page"), self.length)

    def load(self, product, server, seconds):
        """A new page each time, so that everybody waits; the origin counts how often it was asked."""
        self.turn += 1
        before = checks.origin_count(self.options.origin_port)
        counted = load.burst(server.ports["HTTP"], f"/stale/{self.origin_ms}/3600/{product.name}-{self.turn}", self.options.load_cores, self.options.clients)
        fetches = checks.origin_count(self.options.origin_port) - before
        return {**counted, "value": counted["p99"] - self.origin_ms, "fetches": fetches}

    def notes(self, counted, memory):
        notes = []
        for product, rounds in counted.items():
            fetches, slowest = max(one["fetches"] for one in rounds), max(one["value"] for one in rounds)
            words = f"{product.title}: {fetches} fetch{'es' if fetches != 1 else ''} at most in a round, p99 {slowest:.0f} ms over the origin's time at most"
            if product.name == "weir":
                words += f"; bar: one fetch and {self.limit:g} ms: {'met' if fetches == 1 and slowest <= self.limit else '**missed**'}"
            notes.append(words)
        return notes


class SmokeForward(Forward):
    """For the smoke mode, which does without wrk."""

    name, products, bars, tools = "smoke-forward", ("weir",), (), ()

    def load(self, product, server, seconds):
        return load.open_model(self.port(product, server), self.path(product), self.options.load_cores, seconds, self.options.rate)


CLASSES = {row.name: row for row in (Page, Keys, Redis, Forward, Post, Token, Rs256, Es256, Tls, Handshake, H2, OpenModel, Stampede)}
ALL = {**CLASSES, SmokeForward.name: SmokeForward}
