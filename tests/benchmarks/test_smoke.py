"""The harness itself, at toy sizes, so that it does not rot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks import plot
from benchmarks.__main__ import run
from benchmarks.clients import Pull, pull
from benchmarks.measure import Figures
from benchmarks.origin import BLOBS, Origin
from benchmarks.peers import DOCKER_REGISTRY, OWN, absent
from benchmarks.report import measured, verdict
from benchmarks.scenarios import BARS, BEST, SCENARIOS, Bar, Point, Scale
from benchmarks.shaping import Link, Shape
from tests.support.programs import require

TOY = Scale(size=400_000, layers=4, clients=3, rounds=1, seconds=1, limit=10, cached=50)
SOME = ("start", "warm-8", "guarded-blob", "cold", "ten-layers", "push-100", "token-tag", "tags")


def test_the_harness_runs_from_end_to_end(capsys: pytest.CaptureFixture[str]) -> None:
    """Every scenario gives figures for all who are here, and that of the upstream bytes, which is no matter of speed, is right."""
    require("docker-registry", "nginx", "wrk")
    chosen = [scenario.at_most(TOY) for scenario in SCENARIOS if scenario.name in SOME]
    lines, results = run(chosen, None, judged=True)
    assert capsys.readouterr().out.splitlines() == lines
    for scenario in chosen:
        assert set(results[scenario.name]) == set(scenario.contenders) - set(absent())
        assert all(one.seconds or one.rate for one in results[scenario.name].values())
    assert results["ten-layers"][OWN].upstream == pytest.approx(1.0, abs=0.05)
    assert results["ten-layers"]["direct"].upstream == pytest.approx(3.0, abs=0.05)
    ET.fromstring(plot.draw([(scenario, results[scenario.name]) for scenario in chosen]))


def test_every_bar_is_about_figures_that_are_measured() -> None:
    """Its scenarios exist, and its contenders take part in them."""
    taking_part = {scenario.name: {*scenario.contenders, BEST} for scenario in SCENARIOS}
    for bar in BARS:
        assert (bar.at_least is None) != (bar.at_most is None)
        for point in (bar.first, bar.second):
            assert point is None or point.contender in taking_part[point.scenario]


def test_a_bar_is_judged_by_its_figures_alone() -> None:
    """A figure at the bar reaches it, one beyond does not, and one that is missing is no failure."""
    bar = Bar(4, "", Point("cold", "seconds"), Point("cold", "seconds", DOCKER_REGISTRY), at_most=1.5)
    for own, said in ((1.5, "reached"), (1.51, "NOT REACHED"), (None, "not judged: a figure is missing")):
        results = {"cold": {OWN: Figures(seconds=own), DOCKER_REGISTRY: Figures(seconds=1.0), "nginx": Figures(seconds=0.1)}}
        assert verdict(bar, measured(bar, results)) == said
    best = Bar(4, "", Point("warm", "rate"), Point("warm", "rate", BEST), at_least=1.0)
    results = {"warm": {OWN: Figures(rate=3), DOCKER_REGISTRY: Figures(rate=2), "nginx": Figures(rate=4)}}
    assert measured(best, results) == 0.75


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[Origin]:
    require("docker-registry")
    registry = Origin(tmp_path / "origin")
    yield registry
    registry.stop()


def test_a_link_is_as_far_and_as_slow_as_it_says(origin: Origin) -> None:
    """A round trip to connect and one for each request; the caps; and the bytes of the answers are counted."""
    image = origin.add_image(layers=2, size=200_000)
    with Link(origin.url, Shape(rtt=0.1, per_connection=1e6)) as link:
        (client,) = pull(Pull(link.url, image.manifest(image.tag), image.layers, BLOBS, 1, 1, 30))
        # The manifest, then both layers at once, one of them on a new connection.
        assert client.first_byte is not None
        assert client.first_byte >= 0.3
        assert client.done is not None
        assert client.done >= 0.3 + 0.2 * 0.8
        assert image.size < link.received < image.size + 10_000
    with Link(origin.url, Shape(whole=1e6)) as link:
        clients = pull(Pull(link.url, None, image.layers, BLOBS, 3, 3, 30))
        assert max(client.done or 0 for client in clients) >= 3 * 0.4 * 0.8
        assert 3 * image.size < link.received < 3 * image.size + 10_000


def test_a_link_cuts_and_the_clients_resume(origin: Origin) -> None:
    """What was let through has arrived, so that nothing is fetched twice; and the clients check what they have in the end."""
    image = origin.add_image(layers=1, size=400_000)
    with Link(origin.url, Shape(per_connection=4e6, cut=50_000)) as link:
        (client,) = pull(Pull(link.url, None, image.layers, BLOBS, 1, 1, 30))
        assert client.done is not None
        assert client.resumed > 1
        assert link.received < image.size * 1.05


def test_a_client_that_is_given_other_bytes_says_so(origin: Origin) -> None:
    """What is measured is whole, and right."""
    image = origin.add_image(layers=1, size=1000)
    absent_ = {"sha256:" + "0" * 64: 1000}
    (client,) = pull(Pull(origin.url, None, absent_, BLOBS, 1, 1, 30))
    assert "404" in client.fault
    (digest, size), *_ = image.layers.items()
    (client,) = pull(Pull(origin.url, None, {digest: size + 1}, BLOBS, 1, 1, 30))
    assert "length" in client.fault
    assert client.done is None
