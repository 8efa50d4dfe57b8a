"""Bearer tokens (JWT) for the token rows, and the keys that sign them."""

import base64
import hashlib
import hmac
import json
import subprocess
import time

from . import tools
from .paths import BUILD

SECRET = "bench-secret-of-more-than-thirty-two-bytes"
USERS = 100


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def raw_ecdsa(der):
    """A DER signature of ECDSA with P-256 as the 64 bytes that JOSE wants."""
    def integer(at):
        length = der[at + 1]
        return der[at + 2:at + 2 + length].lstrip(b"\0").rjust(32, b"\0"), at + 2 + length
    first, at = integer(2)
    return first + integer(at)[0]


class Tokens:
    """Made once a run, for as many users as there are in USERS, good for a day."""

    def __init__(self):
        self.folder = BUILD / "tokens"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lists = {}

    def private_key(self, algorithm):
        path = self.folder / f"{algorithm}.pem"
        if not path.exists():
            tools.need("openssl")
            kind = ["RSA", "-pkeyopt", "rsa_keygen_bits:2048"] if algorithm == "RS256" else ["EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
            tools.run(["openssl", "genpkey", "-algorithm", *kind, "-out", path])
        return path

    def public_key(self, algorithm):
        path = self.folder / f"{algorithm}.pub.pem"
        if not path.exists():
            tools.run(["openssl", "pkey", "-in", self.private_key(algorithm), "-pubout", "-out", path])
        return path

    def sign(self, algorithm, claims):
        text = ".".join(encoded(json.dumps(part, separators=(",", ":")).encode()) for part in ({"alg": algorithm, "typ": "JWT"}, claims))
        if algorithm == "HS256":
            signature = hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).digest()
        else:
            signature = subprocess.run(["openssl", "dgst", "-sha256", "-sign", self.private_key(algorithm)], input=text.encode(), capture_output=True, check=True).stdout
            if algorithm == "ES256":
                signature = raw_ecdsa(signature)
        return f"{text}.{encoded(signature)}"

    def made(self, algorithm):
        if algorithm not in self.lists:
            now = int(time.time())
            self.lists[algorithm] = [self.sign(algorithm, {"iss": "bench", "sub": f"user-{n}", "jti": f"{algorithm}-{n}", "iat": now, "exp": now + 86400, "roles": ["member"]}) for n in range(USERS)]
        return self.lists[algorithm]

    def expired(self, algorithm):
        now = int(time.time())
        return self.sign(algorithm, {"iss": "bench", "sub": "user-0", "jti": "old", "iat": now - 7200, "exp": now - 3600})

    def file(self, algorithm):
        path = self.folder / f"{algorithm}.txt"
        path.write_text("\n".join(self.made(algorithm)) + "\n")
        return path

    def jwks(self, algorithm):
        """The key as a JSON Web Key Set, for those who do not read PEM."""
        if algorithm == "HS256":
            key = {"kty": "oct", "k": encoded(SECRET.encode())}
        else:
            der = subprocess.run(["openssl", "pkey", "-pubin", "-in", self.public_key(algorithm), "-outform", "DER"], capture_output=True, check=True).stdout
            if algorithm == "ES256":
                key = {"kty": "EC", "crv": "P-256", "x": encoded(der[-64:-32]), "y": encoded(der[-32:])}
            else:
                # A 2,048-bit modulus is followed by the exponent 65537 as an INTEGER of three bytes.
                key = {"kty": "RSA", "n": encoded(der[-261:-5]), "e": encoded(der[-3:])}
        return json.dumps({"keys": [{**key, "alg": algorithm}]})

    def settings(self, algorithm):
        """What configurations need to know."""
        if algorithm == "HS256":
            return {"ALG": algorithm, "SECRET": SECRET, "JWKS": self.jwks(algorithm), "TOKEN_KEY": f"secret: {SECRET}", "TOKEN_CACHE": 100000}
        public = self.public_key(algorithm)
        block = "public_key: |\n" + "".join(f"                  {line}\n" for line in public.read_text().splitlines())
        return {"ALG": algorithm, "SECRET": SECRET, "JWKS": self.jwks(algorithm), "PUBLIC_KEY": public, "TOKEN_KEY": block.rstrip("\n"), "TOKEN_CACHE": 100000}
