"""What is remembered of challenges, tokens and redirects, and how it is forgotten again; and what strings from upstream may do."""

from __future__ import annotations

import asyncio
import base64
from urllib.parse import parse_qs

import pytest
from yarl import URL

from mirror.errors import UpstreamInvalid
from mirror.upstream.challenges import pull_scope
from mirror.upstream.urls import parse_url
from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Fault, Raw, Redirect, Scripted, Silence, Status

LATEST = "/v2/app/manifests/latest"
BASIC = base64.b64encode(b"robot:secret-pw").decode()


def challenged(header: str) -> Status:
    return Status(401, {"WWW-Authenticate": header})


@pytest.mark.parametrize(
    "header",
    [
        'Basic realm="Maintenance"',
        'Bearer realm="http://127.0.0.1:1/token",service="gone"',
        'Bearer realm="/token"',
        'Bearer realm="http://127.0.0.1:99999/token"',
        'Bearer realm="http:///token"',
        "Negotiate",
    ],
)
@pytest.mark.parametrize("auth", [None, "bearer"])
async def test_a_passing_challenge_shuts_no_registry_out(
    start: StartMirror, upstream: Scripted, header: str, auth: str | None
) -> None:
    """It fails the requests that met it, with an upstream's error; the next one is sent as if there had been none."""
    upstream.add_image("library/app", "latest")
    mirror: Mirror = await start()
    upstream.fail("latest", challenged(header), times=4)
    assert (await mirror.get(LATEST)).status in (403, 503)
    upstream.heal()
    upstream.auth = auth
    before = upstream.count("GET", "latest")
    assert (await mirror.get(LATEST)).status == 200
    assert upstream.count("GET", "latest") - before == (1 if auth is None else 2)


@pytest.mark.parametrize("header", ['Basic realm="Maintenance"', 'Bearer realm="http://127.0.0.1:1/token"', "Negotiate"])
async def test_a_dead_token_service_never_stops_the_registry_from_being_asked(
    start: StartMirror, upstream: Scripted, header: str
) -> None:
    """However often it fails: each request for something new reaches the registry."""
    mirror: Mirror = await start()
    upstream.fail("manifests/", challenged(header), times=1000)
    for number in range(6):
        before = upstream.count("GET", "manifests/")
        assert (await mirror.get(f"/v2/app/manifests/t{number}")).status in (403, 503)
        assert upstream.count("GET", "manifests/") > before


@pytest.mark.parametrize("status", [400, 401, 403])
async def test_a_kept_token_that_is_refused_is_replaced_at_once(start: StartMirror, upstream: Scripted, status: int) -> None:
    """The registry is asked without it, and with a new one: nobody waits until it expires."""
    upstream.auth = "bearer"
    upstream.add_image("library/app", "one")
    upstream.add_image("library/app", "two")
    mirror: Mirror = await start()
    assert (await mirror.get("/v2/app/manifests/one")).status == 200
    if status == 401:
        upstream.revoke_tokens()
    else:
        upstream.fail("two", Status(status))
    assert (await mirror.get("/v2/app/manifests/two")).status == 200
    assert upstream.count("GET", "/token") == 2


@pytest.mark.parametrize("offered", ["basic", "bearer"])
async def test_a_registry_that_no_longer_wants_authorization_is_asked_without(
    start: StartMirror, upstream: Scripted, offered: str
) -> None:
    """A challenge that passed is forgotten also if the registry answers 400 to what answers it, as stores with signed URLs do."""
    upstream.auth, upstream.accounts, upstream.token_life = offered, {"robot": "secret-pw"}, -5
    upstream.add_image("library/app", "one")
    upstream.add_image("library/app", "two")
    registry = {"endpoints": [upstream.url], "username": "robot", "password": "secret-pw"}
    mirror: Mirror = await start(settings={"registries": {"docker.io": registry}})
    assert (await mirror.get("/v2/app/manifests/one")).status == 200
    upstream.auth, upstream.refuses_authorization = None, True
    assert (await mirror.get("/v2/app/manifests/two")).status == 200
    assert upstream.count("GET", "two") == 2


async def test_a_refusal_that_stays_is_asked_about_once_more_and_no_oftener(start: StartMirror, upstream: Scripted) -> None:
    """403 to the remembered token, to none and to a new one: then that is the answer."""
    upstream.auth = "bearer"
    upstream.add_image("library/app", "one")
    upstream.add_image("library/app", "two")
    mirror: Mirror = await start()
    assert (await mirror.get("/v2/app/manifests/one")).status == 200
    upstream.fail("two", Status(403), times=50)
    assert (await mirror.get("/v2/app/manifests/two")).status == 403
    assert upstream.count("GET", "two") == 3


@pytest.mark.parametrize(
    ("scope", "asked"),
    [
        (None, "repository:library/app:pull"),
        ("", "repository:library/app:pull"),
        ("aws", "aws"),
        ("repository:hub/library/app:pull", "repository:hub/library/app:pull"),
        ("repository:library/app:pull,push,delete", "repository:library/app:pull"),
        ("repository:library/app:*", "repository:library/app:pull"),
        ("repository:library/app:push", "repository:library/app:pull"),
        ("repository:other/app:push", "repository:library/app:pull"),
        ("repository:a:pull repository:b:delete", "repository:a:pull"),
        ("registry:catalog:*", "repository:library/app:pull"),
        ("repository:a:pull repository:b:pull,push", "repository:a:pull repository:b:pull"),
        ("repository(plugin):library/app:pull", "repository(plugin):library/app:pull"),
        ("repository:host:5000/app:pull", "repository:host:5000/app:pull"),
    ],
)
def test_no_more_than_pull_is_asked_for(scope: str | None, asked: str) -> None:
    """Whatever a challenge wants; an empty scope is none."""
    assert pull_scope(scope, "library/app") == asked


async def test_a_scope_belongs_to_the_repository_it_was_demanded_for(start: StartMirror, upstream: Scripted) -> None:
    """A registry that knows one repository by another name has its say for that one alone."""
    for name in ("library/a", "library/b"):
        upstream.add_image(name, "latest")
    mirror: Mirror = await start()
    for name in ("a", "b"):
        upstream.fail(f"/{name}/", challenged(f'Bearer realm="{upstream.url}/token",scope="repository:hub/{name}:pull,push"'))
        assert (await mirror.get(f"/v2/{name}/manifests/latest")).status == 200
    scopes = [asked.query for asked in upstream.asked if asked.path == "/token"]
    assert scopes == ["scope=repository:hub/a:pull", "scope=repository:hub/b:pull"]


_NO_URLS = [
    "/token", "//", "", "http:///x", "http://127.0.0.1:99999/x", "http://127.0.0.1:port/x", "http://[::1", "ftp://127.0.0.1/x", "http://a b/",
    "http://127.0.0.1:1/\x7f", "mailto:x", "http://" + "a" * 20_000 + "/", "http://%zz/", "http://\udcff/", "https://user@/x",
]  # fmt: skip


@pytest.mark.parametrize("text", _NO_URLS)
def test_what_is_no_url_is_upstreams_error(text: str) -> None:
    """Nothing else is raised, now or when a part of it is looked at."""
    try:
        url = parse_url(text, "it")
    except UpstreamInvalid:
        return
    assert url.host
    assert url.port
    assert str(url.with_user(None))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://h/a b?c d", "http://h/a%20b?c%20d"),
        ("http://h/ä?ö=ü", "http://h/%C3%A4?%C3%B6=%C3%BC"),
        ("http://h/%2F%41?x=%2b+", "http://h/%2F%41?x=%2b+"),
        ("../x?y=1#z", "http://base/a/x?y=1"),
        ("//other/x", "http://other/x"),
        (" http://h/x ", "http://h/x"),
        ("https://münchen.example/x", "https://xn--mnchen-3ya.example/x"),
        ("//münchen.example:81/ä", "http://xn--mnchen-3ya.example:81/%C3%A4"),
        ("https://straße.example/", "https://xn--strae-oqa.example/"),
        ("/x//ä/y", "http://base/x//%C3%A4/y"),
        ("/x?to=http://ä/", "http://base/x?to=http://%C3%A4/"),
    ],
)
def test_urls_are_escaped_as_go_does(text: str, expected: str) -> None:
    """Spaces and UTF-8 are; what is escaped already is signed perhaps, and stays as it is."""
    assert str(parse_url(text, "it", URL("http://base/a/b/c"))) == expected


async def test_urls_that_are_sent_as_utf_8_arrive_as_utf_8(start: StartMirror, upstream: Scripted) -> None:
    """A redirect, a realm and a next page with spaces and letters that nobody has escaped: what is asked for next has them escaped, as Go's clients do."""
    image = upstream.add_image("library/größe x", "latest")
    mirror: Mirror = await start()
    length = "Content-Length: 0\r\n\r\n"
    upstream.fail("latest", Raw(f"HTTP/1.1 307 x\r\nLocation: /v2/library/größe x/manifests/latest\r\n{length}".encode()))
    assert (await mirror.get(LATEST)).body == image.body
    assert upstream.asked[-1].path == "/v2/library/größe x/manifests/latest"
    challenge = f'Bearer realm="{upstream.url}/token?größe=1 2",service="größe"'
    upstream.fail("tags/list", Raw(f"HTTP/1.1 401 x\r\nWWW-Authenticate: {challenge}\r\n{length}".encode()))
    page = 'HTTP/1.1 200 x\r\nLink: <?last=größe x>; rel="next"\r\nContent-Length: 14\r\n\r\n{"tags":["a"]}'
    upstream.fail("tags/list", Raw(page.encode()))
    await mirror.get("/v2/app/tags/list")
    queries = [parse_qs(asked.query) for asked in upstream.asked]
    assert {"größe": ["1 2"], "service": ["größe"], "scope": ["repository:library/app:pull"]} in queries
    assert {"last": ["größe x"], "ns": ["docker.io"]} in queries


@pytest.mark.parametrize("where", _NO_URLS)
async def test_stale_is_served_whatever_a_redirect_or_a_realm_says(start: StartMirror, upstream: Scripted, where: str) -> None:
    """A cached tag is there for its clients, and an uncached one is upstream's fault."""
    image = upstream.add_image("library/app", "latest")
    upstream.add_image("library/app", "other")
    mirror: Mirror = await start(tag_ttl=0)
    assert (await mirror.get(LATEST)).body == image.body
    header = "".join(character for character in where if character.isprintable() and character.isascii())
    for fault in (Redirect(header), challenged(f'Bearer realm="{header}"')):
        for method in ("HEAD", "GET"):
            upstream.fail("manifests/", fault, times=20, method=method)
        stale = await mirror.get(LATEST)
        assert (stale.status, stale.body) == (200, image.body)
        assert "stale" in stale.cache
        assert (await mirror.get("/v2/app/manifests/other")).status in (403, 503)
        upstream.heal()


async def test_a_manifest_may_be_redirected_to_another_registry(start: StartMirror, upstream: Scripted) -> None:
    """Its challenge is answered with its own token, made without the first one's credentials."""
    upstream.auth, upstream.accounts = "bearer", {"robot": "secret-pw"}
    async with Scripted() as other:
        other.auth = "bearer"
        image = other.add_image("linuxserver/app", "latest")
        upstream.fail("latest", Redirect(f"{other.url}/v2/linuxserver/app/manifests/latest"), times=2)
        registry = {"endpoints": [upstream.url], "username": "robot", "password": "secret-pw"}
        mirror: Mirror = await start(settings={"registries": {"docker.io": registry}})
        assert (await mirror.get(LATEST)).body == image.body
        tokens = [asked for asked in other.asked if asked.path == "/token"]
        assert [(asked.query, asked.authorization) for asked in tokens] == [
            ("service=scripted&scope=repository:linuxserver/app:pull", None)
        ]
        first = {asked.authorization for asked in upstream.asked} - {None}
        assert not first & {asked.authorization for asked in other.asked}


@pytest.mark.parametrize("status", [301, 307])
async def test_a_realm_may_have_moved(start: StartMirror, upstream: Scripted, status: int) -> None:
    """Its redirect is followed; to another origin without the password."""
    upstream.auth = "bearer"
    upstream.add_image("library/app", "latest")
    async with Scripted() as moved:
        upstream.realm = f"{moved.url}/v2/token"
        moved.fail("/v2/token", Redirect(f"{upstream.url}/token?scope=repository:library/app:pull", status))
        registry = {"endpoints": [upstream.url], "username": "robot", "password": "secret-pw"}
        mirror: Mirror = await start(settings={"registries": {"docker.io": registry}})
        assert (await mirror.get(LATEST)).status == 200
        assert [asked.authorization for asked in moved.asked] == [f"Basic {BASIC}"]
        assert [asked.authorization for asked in upstream.asked if asked.path == "/token"] == [None]


async def test_a_registry_may_change_its_realm(start: StartMirror, upstream: Scripted) -> None:
    """The one that it names now gets the credentials; the one of before is not asked any more, and no token of the one is given to the other."""
    upstream.auth, upstream.accounts = "bearer", {"robot": "secret-pw"}
    image = upstream.add_image("library/app", "latest")
    registry = {"endpoints": [upstream.url], "username": "robot", "password": "secret-pw"}
    mirror: Mirror = await start(settings={"registries": {"docker.io": registry}})
    assert (await mirror.get(LATEST)).status == 200
    before = upstream.count("GET", "/token")
    async with Scripted() as moved:
        moved.accounts, upstream.realm = upstream.accounts, f"{moved.url}/token"
        moved._tokens = upstream._tokens
        upstream.revoke_tokens()
        assert (await mirror.get(f"/v2/app/blobs/{image.config}")).status == 200
        assert [(asked.path, asked.authorization) for asked in moved.asked] == [("/token", f"Basic {BASIC}")]
        assert upstream.count("GET", "/token") == before


@pytest.mark.parametrize("wants", ["basic", "the first one's realm"])
async def test_credentials_go_to_the_endpoint_that_they_are_for(start: StartMirror, upstream: Scripted, wants: str) -> None:
    """A second endpoint, a public mirror perhaps, gets neither them nor a token that was made with them."""
    upstream.auth, upstream.accounts = "bearer", {"robot": "secret-pw"}
    async with Scripted() as second:
        image = second.add_image("library/app", "latest")
        offered = 'Basic realm="x"' if wants == "basic" else f'Bearer realm="{upstream.url}/token",service="scripted"'
        for method in ("GET", "HEAD"):
            second.fail("library/app", challenged(offered), times=20, method=method)
        registry = {"endpoints": [upstream.url, second.url], "username": "robot", "password": "secret-pw"}
        mirror: Mirror = await start(settings={"registries": {"docker.io": registry}})
        assert (await mirror.get(f"/v2/app/blobs/{image.layers[0]}")).status in (403, 404)
        assert second.count("GET", str(image.layers[0])) >= 1
        assert [asked.authorization for asked in second.asked] == [None] * len(second.asked)


@pytest.mark.parametrize("wants", ["basic", "a token"])
@pytest.mark.parametrize("there", ["none set", "set for the first endpoint"])
async def test_an_endpoint_that_requires_a_password_is_named(
    start: StartMirror, upstream: Scripted, wants: str, there: str
) -> None:
    """With what to do: nobody is told to set credentials that are set, and that this endpoint does not get."""
    upstream.auth = "basic" if wants == "basic" else "bearer"
    upstream.accounts = {"someone": "else"}
    given = {} if there == "none set" else {"username": "robot", "password": "secret-pw"}
    async with Scripted() as first:
        endpoints = [upstream.url] if there == "none set" else [first.url, upstream.url]
        mirror: Mirror = await start(settings={"registries": {"docker.io": {"endpoints": endpoints, **given}}})
        answer = await mirror.get(LATEST)
        assert answer.status == 403
        said = answer.body.decode()
        assert f"{upstream.url}/" in said
        assert ("set username and password_file" in said) == (there == "none set")
        assert ("those of docker.io are sent only to" in said) == (there != "none set")
        assert first.count("GET", "manifests/") == (there != "none set")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{",
        b"SSH-2.0\r\n",
        b"",
        b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_a_token_service_that_breaks_is_not_the_registrys_failure(
    start: StartMirror, upstream: Scripted, answer: bytes
) -> None:
    """However it breaks: the registry is asked each time, and its circuit stays closed."""

    async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(service, "127.0.0.1", 0)
    upstream.auth, upstream.realm = "bearer", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/token"
    mirror: Mirror = await start()
    for number in range(5):
        before = upstream.count("GET", "manifests/")
        assert (await mirror.get(f"/v2/app{number}/manifests/latest")).status == 503
        assert upstream.count("GET", "manifests/") > before
    assert b'"state": "ok"' in (await mirror.get("/readyz")).body
    server.close()


@pytest.mark.parametrize(
    "fault",
    [
        *(Status(status) for status in (400, 401, 403, 404, 405, 429, 500, 503)),
        *(
            Status(200, body=body)
            for body in (b"", b"{}", b"[]", b"null", b"<html>", b'{"token": ""}', b'{"token": null, "access_token": 5}')
        ),
        *(
            Status(429, {"Retry-After": "3600"}),
            Status(302, {"Location": "/token"}),
            Status(302),
            Raw(),
            Raw(reset=True),
            Silence(),
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("remembered", [False, True])
async def test_a_token_service_that_fails_stops_nothing(
    start: StartMirror, upstream: Scripted, fault: Fault, remembered: bool
) -> None:
    """Nor where its challenge is remembered: the registry is asked each time, its circuit stays closed, and all is well when the service is."""
    upstream.auth, upstream.token_life = "bearer", -5
    for number in range(5):
        upstream.add_image(f"library/app{number}", "latest")
    mirror: Mirror = await start(settings={"upstream": {"header_timeout": 0.5}})
    if remembered:
        for number in range(5):
            assert (await mirror.get(f"/v2/app{number}/manifests/latest")).status == 200
    upstream.fail("/token", fault, times=1000)
    for number in range(5):
        before = upstream.count("GET", f"app{number}/")
        assert (await mirror.get(f"/v2/app{number}/manifests/other")).status in (403, 503)
        assert upstream.count("GET", f"app{number}/") > before
    assert b'"state": "ok"' in (await mirror.get("/readyz")).body
    upstream.auth = None
    upstream.add_image("library/open", "latest")
    assert (await mirror.get("/v2/open/manifests/latest")).status == 200


async def test_each_scope_is_a_parameter_of_its_own(start: StartMirror, upstream: Scripted) -> None:
    """ "Token Authentication Specification": scope=a&scope=b."""
    upstream.add_image("library/app", "latest")
    mirror: Mirror = await start()
    scopes = "repository:a:pull repository:b:pull"
    upstream.fail("latest", challenged(f'Bearer realm="{upstream.url}/token",scope="{scopes}"'))
    assert (await mirror.get(LATEST)).status == 200
    assert [asked.query for asked in upstream.asked if asked.path == "/token"] == [
        "scope=repository:a:pull&scope=repository:b:pull"
    ]
