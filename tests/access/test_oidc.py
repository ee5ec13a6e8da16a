"""Identity tokens of an issuer with real keys, as a CI job sends them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from mirror.access import oidc
from mirror.access.oidc import Issuers
from mirror.config import ConfigError, load
from tests.support.mirrors import StartMirror
from tests.support.scripted import Scripted

PATH = "/v2/library/app/manifests/1"


class Issuer:
    """Discovery, keys, and tokens."""

    def __init__(self) -> None:
        self.url = ""
        self.asked = 0
        self.requests = 0
        self.broken = False
        self.rsa = rsa.generate_private_key(65537, 2048)
        self.keys: dict[str, dict[str, Any]] = {"one": json.loads(RSAAlgorithm.to_jwk(self.rsa.public_key()))}

    async def answer(self, request: web.BaseRequest) -> web.Response:
        self.requests += 1
        if self.broken:
            return web.Response(status=500)
        if request.path == "/.well-known/openid-configuration":
            return web.json_response({"issuer": self.url, "jwks_uri": f"{self.url}/keys"})
        self.asked += 1
        return web.json_response({"keys": [{**key, "kid": kid} for kid, key in self.keys.items()]})

    def token(self, key: Any = None, kid: str = "one", algorithm: str = "RS256", **claims: Any) -> str:
        said = {
            "iss": self.url,
            "aud": "mirror.test",
            "sub": "repo:acme/app",
            "exp": time.time() + 300,
            "repository_owner": "acme",
            "ref": "refs/heads/main",
            **claims,
        }
        return jwt.encode(
            {name: value for name, value in said.items() if value is not None}, key or self.rsa, algorithm, {"kid": kid}
        )


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    found = Issuer()
    runner = web.ServerRunner(web.Server(found.answer, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    found.url = f"http://{host}:{port}"
    yield found
    await runner.cleanup()


def table(issuer: Issuer, **changes: Any) -> dict[str, Any]:
    claims = {"repository_owner": "acme", "ref": "refs/heads/*"}
    return {"name": "ci", "issuer": issuer.url, "audience": "mirror.test", "claims": claims, **changes}


async def test_jobs_are_let_in_by_their_token(issuer: Issuer, start: StartMirror, upstream: Scripted) -> None:
    """With the right issuer, audience, time, claims and signature only; by Bearer, as a password, and by the token flow. The keys are asked for once."""
    upstream.add_image("library/app", "1")
    mirror = await start(settings={"oidc": [table(issuer)], "access": [{"who": ["oidc:ci"]}]})

    async def status(token: str) -> int:
        return (await mirror.get(PATH, Authorization=f"Bearer {token}")).status

    good = issuer.token()
    for _ in range(3):
        assert await status(good) == 200
    basic = "Basic " + base64.b64encode(f"ci:{good}".encode()).decode()
    assert (await mirror.get(PATH, Authorization=basic)).status == 200
    answer = await mirror.get("/token?scope=repository:library/app:pull", Authorization=basic)
    signed = json.loads(answer.body)["token"]
    assert await status(signed) == 200
    assert issuer.asked == 1
    assert (await mirror.get(PATH)).status == 404
    stranger = rsa.generate_private_key(65537, 2048)
    public = issuer.rsa.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    head, body, _ = good.split(".")
    unsigned = base64.urlsafe_b64encode(json.dumps({"alg": "none", "kid": "one"}).encode()).decode().rstrip("=")
    by_public_key = _hmac_signed(body, public)
    for number, bad in enumerate(
        (
            issuer.token(exp=time.time() - 100),
            issuer.token(exp=None),
            issuer.token(aud="other"),
            issuer.token(aud=None),
            issuer.token(nbf=time.time() + 1000),
            issuer.token(repository_owner="evil"),
            issuer.token(repository_owner=None),
            issuer.token(ref="refs/tags/v1"),
            issuer.token(key=stranger),
            issuer.token(iss="http://127.0.0.1:1"),
            f"{unsigned}.{body}.",
            f"{head}.{body}.AAAA",
            by_public_key,
        )
    ):
        assert await status(bad) in (403, 429), number
    assert issuer.asked == 1


def _hmac_signed(body: str, key: bytes) -> str:
    """A token whose MAC is by the public key, which libraries of old took for right."""
    head = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "kid": "one"}).encode()).decode().rstrip("=")
    signature = hmac.digest(key, f"{head}.{body}".encode(), hashlib.sha256)
    return f"{head}.{body}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


async def test_new_keys_and_an_issuer_that_is_away(issuer: Issuer, start: StartMirror, upstream: Scripted) -> None:
    """While the keys cannot be had, the answer is to try again; once they were, an issuer that is away changes nothing. A token that names a key that there is not does not
    make the mirror ask again at once."""
    upstream.add_image("library/app", "1")
    elliptic = ec.generate_private_key(ec.SECP256R1())
    issuer.keys["two"] = json.loads(ECAlgorithm.to_jwk(elliptic.public_key()))
    issuer.keys["odd"] = {"kty": "nothing that is known"}
    mirror = await start(settings={"oidc": [table(issuer)], "access": [{"who": ["oidc:ci"]}]})
    issuer.broken = True
    assert (await mirror.get(PATH, Authorization=f"Bearer {issuer.token()}")).status == 429
    issuer.broken = False
    assert (await mirror.get(PATH, Authorization=f"Bearer {issuer.token()}")).status == 200
    issuer.broken = True
    two = issuer.token(key=elliptic, kid="two", algorithm="ES256")
    assert (await mirror.get(PATH, Authorization=f"Bearer {two}")).status == 200
    for kid in ("three", "four"):
        assert (await mirror.get(PATH, Authorization=f"Bearer {issuer.token(kid=kid)}")).status == 403
    assert issuer.asked == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"issuer": "http://issuer.example"}, "https"),
        ({"claims": {}}, "claims"),
        ({"name": "a b"}, "name"),
        ({"ca_file": "/nothing"}, "cannot be read"),
    ],
)
def test_tables_that_would_let_in_others_are_refused(change: dict[str, Any], told: str) -> None:
    """An issuer that anybody on the way could play, and no claims, with which every job of everybody would do."""
    whole = {"name": "ci", "issuer": "https://issuer.example", "audience": "mirror", "claims": {"sub": "x"}}
    load(None, {}, {"oidc": [whole]})
    with pytest.raises(ConfigError) as raised:
        load(None, {}, {"oidc": [{**whole, **change}]})
    assert told in str(raised.value)
    with pytest.raises(ConfigError, match="no issuer 'other'"):
        load(None, {}, {"oidc": [whole], "access": [{"who": ["oidc:other"]}]})


@pytest.mark.parametrize("said", [["https://issuer.test"], {"a": 1}, 5, True])
async def test_a_token_that_names_its_issuer_oddly_is_refused(
    issuer: Issuer, start: StartMirror, upstream: Scripted, said: Any
) -> None:
    """403, as any that is not good, and nobody is asked for keys."""
    mirror = await start(settings={"oidc": [table(issuer)], "access": [{"who": ["oidc:ci"]}]})
    parts = [
        base64.urlsafe_b64encode(json.dumps(one).encode()).rstrip(b"=").decode() for one in ({"alg": "RS256"}, {"iss": said})
    ]
    answer = await mirror.get(PATH, Authorization=f"Bearer {'.'.join(parts)}.c2ln")
    assert answer.status == 403
    assert issuer.asked == 0
    assert upstream.asked == []


async def test_an_issuer_that_is_down_does_not_delay_each_request(issuer: Issuer) -> None:
    """Keys that are an hour old are asked for anew. Where they cannot be had they are used on, and asked for again half a minute later."""
    now = 0.0
    issuers = Issuers(lambda: now)
    issuers.take((oidc.Issuer("ci", issuer.url, "mirror.test", {"repository_owner": "acme"}),))
    await issuers.verify(issuer.token())
    issuer.broken = True
    for now, requests in ((3599.0, 2), (3600.0, 3), (3629.0, 3), (3630.0, 4), (3631.0, 4)):  # noqa: B007
        assert (await issuers.verify(issuer.token())).names == {"ci"}
        assert issuer.requests == requests
    issuer.broken = False
    now = 3660.0
    await issuers.verify(issuer.token())
    assert (issuer.requests, issuer.asked) == (6, 2)
    await issuers.aclose()
