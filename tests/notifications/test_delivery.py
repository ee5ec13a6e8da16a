"""What a receiver gets, and what becomes of events that it does not take."""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from mirror import metrics
from mirror.backoff import pause
from mirror.events import Action, Event
from mirror.manifests import Descriptor
from mirror.names import Digest, Repository
from mirror.notifications import delivery as delivery_module
from mirror.notifications import notifications as notifications_module
from mirror.notifications.delivery import MOST, MOST_BYTES
from mirror.notifications.notifications import Notifications
from mirror.notifications.receiver import Receiver as Told
from mirror.patterns import RepositoryPattern
from mirror.upstream.trust import trusting
from tests.support.certificates import Authority
from tests.support.mirrors import until
from tests.support.ports import free_port
from tests.support.receiver import Receiver, is_signed

TEAM = Repository("docker.io", "team/app")


def told(url: str, **changes: object) -> Told:
    everything = (RepositoryPattern.parse("**"),)
    return replace(Told("hook", url, frozenset(Action), everything, 5.0), **changes)  # type: ignore[arg-type]


def pushed(tag: str = "1") -> Event:
    return Event(Action.PUSH, TEAM, tag=tag)


def counted(result: str, name: str = "hook") -> float:
    return metrics.REGISTRY.get_sample_value("mirror_webhook_events_total", {"webhook": name, "result": result}) or 0.0


def gauge(what: str, name: str = "hook") -> float:
    value = metrics.REGISTRY.get_sample_value(f"mirror_webhook_{what}", {"webhook": name})
    assert value is not None
    return value


@pytest.fixture
async def notifications(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Notifications]:
    """With pauses that a test can wait for, and a short patience at the end."""
    monkeypatch.setattr(delivery_module, "pause", lambda failures, retry_after=None: pause(0, 0.01))
    monkeypatch.setattr(notifications_module, "_FLUSH", 0.5)
    made = Notifications("here:5000", "https://mirror.example.com", trusting)
    yield made
    await made.aclose()


async def test_a_body_is_signed_as_receivers_check_it(notifications: Notifications, tmp_path: Path) -> None:
    """By the bytes that were sent, with the secret as the file has it now; with the header that another file has, and the media type of distribution's events."""
    secret, header = tmp_path / "secret", tmp_path / "header"
    secret.write_bytes(b"a secret of many characters\n")
    header.write_text("Bearer something\n")
    async with Receiver() as receiver:
        notifications.take([told(receiver.url, secret_file=secret, authorization_file=header)])
        notifications.send(pushed())
        await receiver.until_taken(1)
        secret.write_bytes(b"another secret of many characters")
        notifications.send(pushed())
        await receiver.until_taken(2)
        first, second = receiver.posts
        assert is_signed(first, b"a secret of many characters")
        assert is_signed(second, b"another secret of many characters")
        assert not is_signed(second, b"a secret of many characters")
        assert first.headers["Content-Type"] == "application/vnd.docker.distribution.events.v2+json"
        assert first.headers["Authorization"] == "Bearer something"


async def test_an_event_has_the_form_of_distributions(notifications: Notifications) -> None:
    """One event in each envelope, each with an id of its own, in the order in which they happened."""
    async with Receiver() as receiver:
        notifications.take([told(receiver.url)])
        for tag in ("1", "2", "3"):
            notifications.send(pushed(tag))
        found = await receiver.until_taken(3)
        assert [len(post.events) for post in receiver.posts] == [1, 1, 1]
        assert [one["target"] for one in found] == [{"repository": "team/app", "tag": tag} for tag in ("1", "2", "3")]
        assert len({one["id"] for one in found}) == 3
        assert {(one["action"], one["source"]["addr"], len(one["source"])) for one in found} == {("push", "here:5000", 2)}
        assert "mirror" not in found[0]


@pytest.mark.parametrize("status", [301, 302, 307, 401, 403, 404, 408, 429, 500, 502, 503])
async def test_what_is_not_taken_is_sent_again(notifications: Notifications, status: int) -> None:
    """Until it is, and then the next one: the same bytes, so that a receiver knows the event by its id. Redirects are not followed."""
    async with Receiver(statuses=[status] * 3, headers={"Location": "/elsewhere", "Retry-After": "0"}) as receiver:
        notifications.take([told(receiver.url)])
        before = counted("delivered")
        notifications.send(pushed("1"))
        notifications.send(pushed("2"))
        found = await receiver.until_taken(2)
        assert [one["target"]["tag"] for one in found] == ["1", "2"]
        assert len({post.body for post in receiver.posts[:4]}) == 1
        assert len(receiver.posts) == 5
        await until(lambda: counted("delivered") - before == 2)
        assert (gauge("pending"), gauge("failing")) == (0, 0)


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_what_a_receiver_refuses_does_not_hold_up_the_next(notifications: Notifications, status: int) -> None:
    """It is given up, and counted."""
    async with Receiver(statuses=[status]) as receiver:
        notifications.take([told(receiver.url)])
        before = counted("refused")
        notifications.send(pushed("1"))
        notifications.send(pushed("2"))
        assert [one["target"]["tag"] for one in await receiver.until_taken(1)] == ["2"]
        assert counted("refused") - before == 1


async def test_a_dead_receiver_gets_it_all_when_it_is_back(
    notifications: Notifications, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once that it fails, and once that it is back; its URL, which may be a secret, is not."""
    caplog.set_level(logging.INFO)
    receiver = Receiver()
    notifications.take([told(receiver.url)])
    for tag in range(5):
        notifications.send(pushed(str(tag)))
    await until(lambda: gauge("failing") == 1)
    assert gauge("pending") == 5
    async with receiver:
        found = await receiver.until_taken(5)
    assert [one["target"]["tag"] for one in found] == ["0", "1", "2", "3", "4"]
    logged = [record.getMessage() for record in caplog.records if record.name.startswith("mirror")]
    assert logged == ["webhook hook: it cannot be reached: Connection refused", "webhook hook: events arrive again"]
    assert "s3cr3t" not in caplog.text


async def test_a_receiver_that_hangs_is_given_up_after_its_timeout(
    notifications: Notifications, caplog: pytest.LogCaptureFixture
) -> None:
    """And asked again."""
    async with Receiver() as receiver:
        receiver.open.clear()
        notifications.take([told(receiver.url, timeout=0.1)])
        notifications.send(pushed())
        await until(lambda: len(receiver.posts) >= 2)
        receiver.open.set()
        await receiver.until_taken(1)
    assert "webhook hook: it does not answer within 0.1 s" in caplog.text


@pytest.mark.parametrize(("size", "kept"), [(10, MOST), (MOST_BYTES // 8, 7)])
async def test_what_waits_is_bounded(notifications: Notifications, size: int, kept: int) -> None:
    """By count and by bytes: the oldest are dropped and counted, and the latest arrive."""
    async with Receiver() as receiver:
        receiver.open.clear()
        notifications.take([told(receiver.url, timeout=60.0)])
        before = counted("dropped")
        notifications.send(pushed("held"))
        await until(lambda: len(receiver.posts) == 1)
        for number in range(kept + 50):
            notifications.send(Event(Action.PUSH, TEAM, tag=str(number), details={"text": "x" * size}))
        dropped = counted("dropped") - before
        assert 50 <= dropped <= 51
        assert gauge("pending") == kept + 51 - dropped
        receiver.open.set()
        found = await receiver.until_taken(int(kept + 51 - dropped))
        assert [one["target"]["tag"] for one in found] == ["held", *map(str, range(int(dropped), kept + 50))]


async def test_a_manifest_with_a_huge_media_type_pushes_no_other_event_out(notifications: Notifications) -> None:
    """What somebody pushes is told without its references where they are too long; with those of any real image."""
    digest = Digest.of(b"")
    layer = Descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", digest, 10**12)
    async with Receiver() as receiver:
        receiver.open.clear()
        notifications.take([told(receiver.url, timeout=60.0)])
        before = counted("dropped")
        for tag, references in (
            ("1", ()),
            ("2", (layer,) * 200),
            ("3", (replace(layer, media_type="ä" * MOST_BYTES),)),
            ("4", ()),
        ):
            notifications.send(Event(Action.PUSH, TEAM, tag=tag, digest=digest, references=references))
        receiver.open.set()
        found = [one["target"] for one in await receiver.until_taken(4)]
    assert [(one["tag"], len(one.get("references", ()))) for one in found] == [("1", 0), ("2", 200), ("3", 0), ("4", 0)]
    assert counted("dropped") == before


async def test_what_is_sent_by_any_thread_arrives(notifications: Notifications) -> None:
    """As the catalog's thread does. Also while the loop is busy."""
    async with Receiver() as receiver:
        notifications.take([told(receiver.url)])
        threads = [threading.Thread(target=notifications.send, args=(pushed(str(number)),)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = await receiver.until_taken(20)
        assert sorted(int(one["target"]["tag"]) for one in found) == list(range(20))


async def test_each_receiver_gets_what_it_wants(notifications: Notifications) -> None:
    """By action and by repository; what has no repository goes to those that are for all."""
    async with Receiver() as all_of_it, Receiver() as moves, Receiver() as team:
        notifications.take(
            [
                told(all_of_it.url, name="all"),
                told(moves.url, name="moves", actions=frozenset({Action.TAG_MOVED})),
                told(team.url, name="team", repositories=(RepositoryPattern.parse("team/**"),)),
            ]
        )
        other = Repository("ghcr.io", "team/app")
        for event in (pushed(), Event(Action.TAG_MOVED, other), Event(Action.LOGIN_LOCKED), Event(Action.PUSH, TEAM, tag="end")):
            notifications.send(event)
        notifications.send(Event(Action.TAG_MOVED, TEAM, tag="end"))
        for receiver in (all_of_it, moves, team):
            await until(
                lambda receiver=receiver: any(
                    one["target"].get("tag") == "end" and one["action"] == "tag_moved" for one in receiver.taken
                )
            )
        assert [one["action"] for one in all_of_it.taken] == ["push", "tag_moved", "login_locked", "push", "tag_moved"]
        assert [one["action"] for one in moves.taken] == ["tag_moved", "tag_moved"]
        assert [one["action"] for one in team.taken] == ["push", "push", "tag_moved"]
        assert moves.taken[0]["target"] == {"repository": "ghcr.io/team/app"}


async def test_what_is_told_once_an_hour_is(notifications: Notifications) -> None:
    """However often it happens."""
    async with Receiver() as receiver:
        notifications.take([told(receiver.url)])
        for once in ("a", "a", "b", "a"):
            notifications.send(Event(Action.QUOTA, details={"of": once}, once=once))
        notifications.send(pushed())
        await receiver.until_taken(1, "push")
        assert [one["mirror"] for one in receiver.of("quota")] == [{"of": "a"}, {"of": "b"}]


async def test_other_tables_count_at_once_and_lose_nothing(notifications: Notifications) -> None:
    """A receiver that has moved gets what waited for it at its old address; one that is no more gets nothing, and what waited is counted."""
    gone = free_port()
    async with Receiver() as receiver:
        notifications.take([told(f"http://127.0.0.1:{gone}/", name="moves"), told(f"http://127.0.0.1:{gone}/", name="ends")])
        before = counted("dropped", "ends")
        notifications.send(pushed("1"))
        await until(lambda: gauge("failing", "moves") == gauge("failing", "ends") == 1)
        notifications.take([told(receiver.url, name="moves")])
        notifications.send(pushed("2"))
        assert [one["target"]["tag"] for one in await receiver.until_taken(2)] == ["1", "2"]
        await until(lambda: gauge("pending", "ends") == 0)
        await until(lambda: counted("dropped", "ends") - before == 1)


async def test_without_receivers_nothing_is_wanted(notifications: Notifications) -> None:
    """So that nothing has to be made for them."""
    assert not any(map(notifications.wants, Action))
    notifications.take([told("http://127.0.0.1:1/", actions=frozenset({Action.PUSH}))])
    assert [action for action in Action if notifications.wants(action)] == [Action.PUSH]
    notifications.take([])
    assert not any(map(notifications.wants, Action))


async def test_the_end_waits_for_what_arrives_and_not_for_what_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that takes events gets the last ones; one that is dead, or hangs, holds up nobody, and what is lost is counted."""
    monkeypatch.setattr(notifications_module, "_FLUSH", 0.2)
    async with Receiver() as well, Receiver() as hangs:
        hangs.open.clear()
        made = Notifications("here:5000", None, trusting)
        dead = f"http://127.0.0.1:{free_port()}/"
        made.take([told(well.url, name="well"), told(hangs.url, name="hangs"), told(dead, name="dead")])
        before = {name: counted("dropped", name) for name in ("well", "hangs", "dead")}
        for tag in range(30):
            made.send(pushed(str(tag)))
        await made.aclose()
        assert len(well.taken) == 30
        assert {name: counted("dropped", name) - count for name, count in before.items()} == {"well": 0, "hangs": 30, "dead": 30}
        assert {gauge("pending", name) for name in before} == {0}
        made.send(pushed("late"))


async def test_a_secret_that_cannot_be_read_sends_nothing_unsigned(
    notifications: Notifications, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried again, and arrives signed when the file is back."""
    secret = tmp_path / "secret"
    async with Receiver() as receiver:
        notifications.take([told(receiver.url, secret_file=secret)])
        notifications.send(pushed())
        await until(lambda: gauge("failing") == 1)
        secret.write_bytes(b"")
        await until(lambda: "is empty" in caplog.text)
        assert not receiver.posts
        secret.write_bytes(b"a secret of many characters")
        await receiver.until_taken(1)
        assert is_signed(receiver.posts[0], b"a secret of many characters")
    assert f"webhook hook: the file {secret} cannot be read: No such file or directory" in caplog.text


async def test_a_certificate_is_checked(notifications: Notifications, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is sent to a receiver that proves to be nobody; with the file of its authority, it is."""
    authority = Authority(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority.certificate, authority.key)
    got: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        got.append(head)
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        before = counted("delivered")
        notifications.take([told(url)])
        notifications.send(pushed())
        await until(lambda: gauge("failing") == 1)
        assert not got
        assert "its certificate is not trusted: unable to get local issuer certificate" in caplog.text
        notifications.take([told(url, ca_file=authority.ca)])
        await until(lambda: counted("delivered") - before == 1)
        assert len(got) == 1
