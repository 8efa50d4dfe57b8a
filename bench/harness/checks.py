"""Looking at answers: what a round counted is worth nothing if the answers were not the right ones."""

import http.client
import re
import socket
import ssl

from .load import Failed

PAGE, JSON = 10240, 2048


def ask(port, path, headers=None, tls=False, body=None):
    """One GET, or a POST if there is a body. Returns status, headers (lower-case names) and body."""
    if tls:
        context = ssl._create_unverified_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET" if body is None else "POST", path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise Failed(f"{path}: {error!r}") from error
    finally:
        connection.close()


def expect(product, got, length, hit=False, status=200):
    """Raises Failed unless status and length are right and, if asked for, the answer says that it came from the cache."""
    found_status, headers, body = got
    if found_status != status:
        raise Failed(f"{product.name}: status {found_status} instead of {status}: {body[:200]!r}")
    if length is not None and len(body) != length:
        raise Failed(f"{product.name}: {len(body)} bytes instead of {length}")
    if hit and not product.hit(headers):
        raise Failed(f"{product.name}: not a hit: {headers}")


def origin_count(port):
    """How many requests the origin has answered so far."""
    return int(ask(port, "/count")[2])


def redis_commands(port):
    """How many commands Redis has carried out so far."""
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(b"INFO stats\r\n")
        text = b""
        while not (found := re.search(rb"total_commands_processed:(\d+)\r\n", text)):
            text += connection.recv(65536)
        return int(found[1])
