"""What webhooks promise (docs/webhooks.md), of whole mirrors."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mirror.config import ConfigError, load
from mirror.config.in_force import in_force
from mirror.manifests import OCI_MANIFEST
from mirror.names import Digest
from tests.api.test_gate import basic, users_file  # noqa: F401  a fixture
from tests.support.commands import Commands
from tests.support.mirrors import Mirror, MirrorProcess, StartMirror
from tests.support.patience import patiently
from tests.support.pushes import manifest_of, push_blob, say
from tests.support.receiver import Receiver, is_signed
from tests.support.scripted import Scripted

SECRET = b"a secret of many characters"
CONFIG, LAYER = b'{"architecture": "amd64", "os": "linux"}', b"layer" * 100


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was counted is written to the catalog at once, and not after five seconds."""
    monkeypatch.setattr("mirror.storage.disk.catalog.usage._INTERVAL", 0.1)


def hook(receiver: Receiver, **table: Any) -> dict[str, Any]:
    return {"webhook": [{"url": receiver.url, **table}]}


async def push(session: aiohttp.ClientSession, repository: str, tag: str, layer: bytes = LAYER) -> Digest:
    for blob in (CONFIG, layer):
        await push_blob(session, repository, blob)
    body = manifest_of(CONFIG, layer)
    done = await say(session, "PUT", f"/v2/{repository}/manifests/{tag}", body, Content_Type=OCI_MANIFEST, User_Agent="client/1")
    assert done.status == 201, done
    return Digest.of(body)


async def test_a_push_and_a_delete_are_told(
    start: StartMirror,
    receiver: Receiver,
    tmp_path: Path,
    users_file: Path,  # noqa: F811
) -> None:
    """Who, from where, by what request, and what: in the form of distribution's events, signed. Requests upstream: none."""
    (tmp_path / "secret").write_bytes(SECRET)
    mirror: Mirror = await start(
        settings={
            "hosted": {"repositories": ["team/**"]},
            "server": {"users_file": str(users_file)},
            **hook(receiver, secret_file=str(tmp_path / "secret")),
        }
    )
    async with aiohttp.ClientSession(mirror.url, headers={"Authorization": basic("alice")}) as session:
        digest = await push(session, "team/app", "1")
        assert (await say(session, "DELETE", "/v2/team/app/manifests/1")).status == 202
        blob = f"/v2/team/app/blobs/{Digest.of(LAYER)}"
        assert (await say(session, "DELETE", blob)).status == 409
        assert (await say(session, "DELETE", f"/v2/team/app/manifests/{digest}")).status == 202
        assert [(await say(session, "DELETE", blob)).status for _ in range(2)] == [202, 404]
    pushed, untagged, deleted, of_blob = await receiver.until_taken(4)
    assert all(is_signed(post, SECRET) for post in receiver.posts)
    body = manifest_of(CONFIG, LAYER)
    described = [(one["mediaType"], one["digest"], one["size"]) for one in pushed["target"].pop("references")]
    named = json.loads(body)
    assert described == [(one["mediaType"], one["digest"], one["size"]) for one in (named["config"], *named["layers"])]
    assert pushed["target"] == {
        "mediaType": OCI_MANIFEST,
        "digest": str(digest),
        "size": len(body),
        "length": len(body),
        "repository": "team/app",
        "url": f"{mirror.url}/v2/team/app/manifests/{digest}",
        "tag": "1",
    }
    assert (await mirror.get(pushed["target"]["url"].removeprefix(mirror.url))).status == 404
    assert pushed["actor"] == {"name": "alice"}
    request = pushed["request"]
    assert (request["addr"], request["host"]) == ("127.0.0.1", mirror.url.removeprefix("http://"))
    assert (request["method"], request["useragent"]) == ("PUT", "client/1")
    assert [one["action"] for one in (pushed, untagged, deleted, of_blob)] == ["push", "delete", "delete", "delete"]
    assert untagged["target"] == {"repository": "team/app", "tag": "1"}
    assert (deleted["target"]["digest"], deleted["actor"]) == (str(digest), {"name": "alice"})
    assert of_blob["target"] == {"repository": "team/app", "digest": str(Digest.of(LAYER)), "url": f"{mirror.url}{blob}"}


async def test_an_images_first_pull_is_told_once(start: StartMirror, upstream: Scripted, receiver: Receiver) -> None:
    """Of what a client fetches for one image, by tag and by digests, one event comes; a second client's pull is none, and the registry is asked no more."""
    images = [upstream.add_image("library/app", None, layers=[os.urandom(50)]) for _ in range(2)]
    index, _ = upstream.add_index("library/app", "latest", images)
    mirror: Mirror = await start(settings=hook(receiver, events=["pull"]))

    async def pull() -> None:
        assert (await mirror.head("/v2/app/manifests/latest")).status == 200
        got = await mirror.get(f"/v2/app/manifests/{index}")
        for one in json.loads(got.body)["manifests"]:
            assert (await mirror.get(f"/v2/app/manifests/{one['digest']}")).status == 200

    await pull()
    (told,) = await receiver.until_taken(1)
    assert (told["action"], told["target"]["tag"]) == ("pull", "latest")
    assert (told["target"]["digest"], told["target"]["repository"]) == (str(index), "library/app")
    asked = len(upstream.asked)
    await pull()
    single = upstream.add_image("library/other", "1")
    assert (await mirror.get(f"/v2/other/manifests/{single.digest}")).status == 200
    assert [one["target"]["repository"] for one in await receiver.until_taken(2)] == ["library/app", "library/other"]
    assert len(upstream.asked) == asked + 1


async def test_a_tag_that_moved_and_what_a_guard_did_are_told(start: StartMirror, upstream: Scripted, receiver: Receiver) -> None:
    """The move at once, with what it meant before; what the guard did once, however many clients it concerns."""
    old = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start(
        tag_ttl=0,
        settings={**hook(receiver, events=["tag_moved", "guard"]), "guard": [{"name": "cool", "cooldown": "3d"}]},
    )
    await mirror.get("/v2/app/manifests/latest")
    new = upstream.add_image("library/app", "latest")
    for _ in range(3):
        assert (await mirror.get("/v2/app/manifests/latest")).body == old.body
    moved, held = await receiver.until_taken(2)
    assert (moved["action"], moved["target"]["tag"], moved["target"]["digest"]) == ("tag_moved", "latest", str(new.digest))
    assert (moved["mirror"]["before"], moved["mirror"]["served"]) == (str(old.digest), False)
    assert (held["action"], held["target"]) == ("guard", {"repository": "library/app", "tag": "latest"})
    assert (held["mirror"]["rule"], held["mirror"]["verdict"]) == ("cool", "held")
    await mirror.get("/v2/app/manifests/latest")
    await mirror.stop()
    assert len(receiver.taken) == 2


async def test_limits_that_are_reached_are_told(
    start: StartMirror, upstream: Scripted, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client's of a minute and of a month, and that of all pushes; each once."""
    monkeypatch.setattr("mirror.access.months.INTERVAL", 0.0)
    upstream.add_image("library/app", "1")
    upstream.add_image("library/much", "1")
    mirror: Mirror = await start(
        settings={
            "hosted": {"repositories": ["team/**"], "max_size": "100B"},
            "access": [
                {"who": ["anyone"], "may": ["pull", "push"], "repositories": ["team/**"]},
                {"who": ["anyone"], "repositories": ["library/much"], "bytes_per_month": "100B"},
                {"who": ["anyone"], "requests_per_minute": 2},
            ],
            **hook(receiver),
        }
    )
    answers = [(await mirror.get("/v2/app/manifests/1")).status for _ in range(5)]
    assert answers == [200, 200, 429, 429, 429]
    for _ in range(2):
        refused = await say(mirror.session, "POST", f"/v2/team/app/blobs/uploads/?digest={Digest.of(LAYER)}", LAYER)
        assert refused.status == 403
    assert (await mirror.get("/v2/much/manifests/1")).status == 200
    (limited, full, month) = [one["mirror"] for one in await receiver.until_taken(3, "quota")]
    assert (limited["limit"], limited["of"]) == ("3", "127.0.0.1")
    assert full["limit"] == "hosted.max_size"
    assert (month["limit"], month["of"]) == ("2", "127.0.0.1")
    assert "gets no more until" in month["reason"]
    assert (await mirror.get("/v2/much/manifests/1")).status == 403
    await mirror.stop()
    assert len(receiver.of("quota")) == 3


async def test_somebody_who_guesses_passwords_is_told(
    start: StartMirror,
    receiver: Receiver,
    users_file: Path,  # noqa: F811
) -> None:
    """By address, and by user if there is one of that name: what is no user's name may be a password. No password is in any event."""
    mirror: Mirror = await start(settings={"server": {"users_file": str(users_file)}, **hook(receiver)})
    wrong = [
        f"Basic {base64.b64encode(f'{user}:wrong-{number}'.encode()).decode()}"
        for user in ("alice", "my-password")
        for number in range(7)
    ]
    got = await asyncio.gather(*(mirror.get("/token?service=x", Authorization=header) for header in wrong))
    assert {one.status for one in got} <= {401, 403, 429}
    found = await receiver.until_taken(2, "login_locked")
    assert sorted(json.dumps(one["mirror"]) for one in found) == ['{"address": "127.0.0.1"}', '{"user": "alice"}']
    await mirror.stop()
    everything = b"".join(post.body for post in receiver.posts)
    assert b"wrong" not in everything
    assert b"my-password" not in everything


async def test_a_receiver_that_hangs_delays_and_fails_nothing(start: StartMirror, receiver: Receiver) -> None:
    """Pushes are answered while none of their events was taken."""
    receiver.open.clear()
    mirror: Mirror = await start(settings={"hosted": {"repositories": ["team/**"]}, **hook(receiver, timeout="60s")})
    for tag in range(5):
        await push(mirror.session, "team/app", str(tag))
    assert not receiver.taken
    receiver.open.set()
    assert [one["target"]["tag"] for one in await receiver.until_taken(5)] == ["0", "1", "2", "3", "4"]


async def test_what_commands_delete_is_told(start: StartMirror, upstream: Scripted, receiver: Receiver, tmp_path: Path) -> None:
    """By the command itself, whether a mirror runs or not; what retention deletes too, and nothing of a dry run."""
    image = upstream.add_image("library/app", "1")
    cache, settings = tmp_path / "cache", tmp_path / "mirror.toml"
    settings.write_text(
        '[hosted]\nrepositories = ["team/**"]\n[[hosted.keep]]\nrepositories = "team/**"\ntags = "*"\nlast = 1\n'
        f'[[webhook]]\nurl = "{receiver.url}"\nevents = ["delete"]\n'
    )
    mirror: Mirror = await start(cache, settings={"hosted": {"repositories": ["team/**"]}})
    await mirror.get("/v2/app/manifests/1")
    for tag in ("1", "2"):
        await push(mirror.session, "team/app", tag)
    commands = Commands(cache, upstream)
    await commands("rm", "app:1", "--config", str(settings))
    await commands("gc", "--dry-run", "--config", str(settings))
    await commands("gc", "--config", str(settings))
    removed, kept_no_longer = await receiver.until_taken(2)
    assert removed["target"] == {"digest": str(image.digest), "repository": "library/app", "tag": "1"}
    assert kept_no_longer["target"] == {"repository": "team/app", "tag": "1"}
    assert kept_no_longer["actor"] == {"name": "hosted.keep"}
    # A receiver that is not there makes no command fail.
    receiver.status = 500
    await commands("rm", "docker.io/team/app:2", "--config", str(settings))
    assert len(receiver.taken) == 2


async def test_workers_tell_each_event_once_and_the_last_ones_at_the_end(upstream: Scripted, tmp_path: Path) -> None:
    """Whichever worker gets a request; also those that an old receiver did not take, once SIGHUP has given them a new one, and what happens just before SIGTERM."""
    for number in range(8):
        upstream.add_image(f"library/app{number}", "1")
    settings = tmp_path / "mirror.toml"

    def write(url: str) -> None:
        settings.write_text(f'[hosted]\nrepositories = ["team/**"]\n[[webhook]]\nname = "hook"\nurl = "{url}"\n')

    async with Receiver(status=500) as old, Receiver() as receiver:
        write(old.url)
        process = MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, "--config", str(settings), "--workers", "2")
        await asyncio.to_thread(process.start)
        try:

            async def ask(number: int) -> None:
                async with aiohttp.ClientSession(process.url) as session:
                    for _ in range(3):
                        assert (await say(session, "GET", f"/v2/app{number}/manifests/1")).status == 200
                    await push(session, f"team/app{number}", "1", os.urandom(100))

            await asyncio.gather(*map(ask, range(8)))
            for _ in patiently():
                if await asyncio.to_thread(process.metric, "mirror_webhook_pending") == 16:
                    break
                await asyncio.sleep(0.05)
            assert not old.taken
            write(receiver.url)
            os.kill(process.pid, signal.SIGHUP)
            found = await receiver.until_taken(16)
            assert sorted((one["action"], one["target"]["repository"]) for one in found) == sorted(
                (action, f"{folder}/app{number}")
                for number in range(8)
                for action, folder in (("pull", "library"), ("push", "team"))
            )
            assert len({one["id"] for one in found}) == 16
            assert len({one["source"]["instanceID"] for one in found}) == 2
            assert await asyncio.to_thread(process.metric, "mirror_webhook_events_total") == 16
            receiver.open.clear()
            await asyncio.gather(*map(ask, range(8)))
            ended = asyncio.create_task(asyncio.to_thread(process.terminate))
            for _ in patiently():
                if "stopping" in process.log:
                    break
                await asyncio.sleep(0.05)
            receiver.open.set()
            assert await ended == 0
            assert len(receiver.of("push")) == 16
            assert len(receiver.taken) == 24
        finally:
            process.__exit__()
    assert "s3cr3t-path" not in process.log


async def test_the_url_and_the_secret_are_shown_nowhere(start: StartMirror, receiver: Receiver, tmp_path: Path) -> None:
    """Neither on pages, nor in metrics; the settings say that there is one."""
    (tmp_path / "secret").write_bytes(SECRET)
    table = {"url": receiver.url, "secret_file": str(tmp_path / "secret"), "name": "ci"}
    mirror: Mirror = await start(settings={"webhook": [table]})
    for path in ("/settings", "/metrics", "/readyz", "/guards", "/"):
        body = (await mirror.get(path)).body
        assert b"s3cr3t-path" not in body, path
        assert SECRET not in body, path
    shown = in_force(load(None, {}, {"webhook": [table]}))
    assert shown['webhook."ci".url'] == "(set)"
    assert SECRET.decode() not in repr(shown)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"url": "ftp://host/s3cr3t"}, "webhook.0.url (on the command line): a URL with http or https is expected"),
    ({"url": "https:///s3cr3t"}, "a URL with http or https is expected"),
    ({"url": "https://host:99999/s3cr3t"}, "a URL with http or https is expected"),
    ({"url": "https://bob:s3cr3t@host/"}, "a file named by authorization_file has them"),
    ({}, "webhook.0.url: Field required"),
    ({"url": "https://host/", "events": ["pushed"]}, "or 'login_locked' is expected; found 'pushed'"),
    ({"url": "https://host/", "events": []}, "a webhook for no event is not needed"),
    ({"url": "https://host/", "repositories": ["Team/**"]}, "is not a pattern of repository names"),
    ({"url": "https://host/", "secret_file": "/nowhere"}, "the file /nowhere cannot be read"),
    ({"url": "https://host/", "secret_file": os.devnull}, "cannot be read"),
    ({"url": "https://host/", "authorization_file": "/nowhere"}, "the file /nowhere cannot be read"),
    ({"url": "https://host/", "ca_file": "/nowhere"}, "the file /nowhere cannot be read"),
    ({"url": "https://host/", "timeout": "0s"}, "greater than 0"),
    ({"url": "https://host/", "sekret_file": "x"}, "is 'secret_file' meant?"),
]


@pytest.mark.parametrize(("table", "fault"), WRONG)
def test_a_wrong_table_is_said_without_its_secret(table: dict[str, Any], fault: str) -> None:
    """Before anything starts."""
    with pytest.raises(ConfigError) as caught:
        load(None, {}, {"webhook": [table]})
    assert fault in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


def test_two_webhooks_have_two_names_and_a_short_secret_is_refused(tmp_path: Path) -> None:
    """Names are those of the metrics; a secret that can be guessed proves nothing."""
    one = {"url": "https://host/", "name": "x"}
    with pytest.raises(ConfigError, match="two webhooks have the name 'x'"):
        load(None, {}, {"webhook": [one, one]})
    (tmp_path / "short").write_text("short\n")
    with pytest.raises(ConfigError, match="at least 16 characters are expected") as caught:
        load(None, {}, {"webhook": [{**one, "secret_file": str(tmp_path / "short")}]})
    assert "found 'short'" not in str(caught.value)
    named = load(None, {"MIRROR_WEBHOOK": json.dumps([{"url": "https://host/"}, one])}, {})
    assert [webhook.name for webhook in named.webhook] == ["1", "x"]
