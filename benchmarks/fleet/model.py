"""A fleet as flows of bytes: each mirror's card is shared equally by the connections that it serves, as TCP does.

Nodes are spread over the mirrors as `mirror configure` does it, and download some layers at once, in the order of the manifest. A layer comes to its home from
the registry, to the other mirrors from its home, as it comes in. Disks and processors are faster than cards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mirror.upstream.fleet import ranked

EFFICIENCY = 0.983
"""What a card brings of its rate: the mean of `MEASURED`."""
_STEPS = 250
"""Steps of a simulation that takes as long as the cards alone would."""
_WAVES = 4
"""Groups of a mirror's nodes that begin at the same moment."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Rates in bytes a second."""

    mirrors: int
    card: float
    upstream: float
    """What the registry gives to all mirrors together."""
    shares: bool = True
    """False for mirrors that know nothing of each other."""


@dataclass(frozen=True, slots=True)
class Load:
    """Nodes that pull one image, of which each layer has so many bytes."""

    nodes: int
    layers: Sequence[float]
    node_card: float
    """Bytes a second."""
    at_once: int = 3
    """Layers that a node downloads at the same time: containerd's and dockerd's default."""
    spread: float = 0.0
    """Seconds within which the nodes begin."""


@dataclass(frozen=True, slots=True)
class Result:
    """`seconds` until the last node has all; bytes from the registry, and between mirrors."""

    seconds: float
    upstream: float
    between: float


@dataclass(slots=True)
class _Nodes:
    """Some nodes of one mirror, which all do the same."""

    mirror: int
    count: int
    begin: float
    got: list[float]
    left: list[int]
    """Layers that are not complete, in order."""


@dataclass(slots=True)
class _Flow:
    """`count` connections from one card, each of which can take `most` bytes in this step."""

    count: int
    most: float
    to: list[float]
    layer: int
    is_peer: bool = field(default=False)


def simulate(fleet: Fleet, load: Load) -> Result:
    """Returns how long it takes, and what is sent. Raises ValueError for a fleet or a load of nothing."""
    if fleet.mirrors < 1 or load.nodes < 1 or not load.layers:
        raise ValueError("at least one mirror, one node and one layer are expected")
    card, layers = fleet.card * EFFICIENCY, load.layers
    step = max(load.nodes * sum(layers) / (card * fleet.mirrors), sum(layers) / min(fleet.upstream, load.node_card)) / _STEPS
    names = [f"http://mirror-{number}:5000" for number in range(fleet.mirrors)]
    homes = [names.index(ranked(names, f"sha256:{layer}")[0]) for layer in range(len(layers))]
    have = [[0.0] * len(layers) for _ in names]
    groups = _groups(fleet.mirrors, load)
    now = upstream = between = 0.0
    while groups:
        flows: list[list[_Flow]] = [[] for _ in names]
        wanted: set[tuple[int, int]] = set()
        for group in groups:
            if group.begin <= now:
                active = group.left[: load.at_once]
                for layer in active:
                    wanted.add((group.mirror, layer))
                    most = min(load.node_card / len(active) * step, have[group.mirror][layer] - group.got[layer])
                    flows[group.mirror].append(_Flow(group.count, most, group.got, layer))
        asking = set()
        for mirror, layer in wanted:
            home = homes[layer] if fleet.shares else mirror
            if have[home][layer] < layers[layer]:
                asking.add((home, layer))
            if home != mirror:
                most = min(card * step, have[home][layer] - have[mirror][layer])
                flows[home].append(_Flow(1, most, have[mirror], layer, is_peer=True))
        for of_card in flows:
            between += _send(of_card, card * step)
        for mirror, layer in asking:
            size = min(fleet.upstream * step / len(asking), card * step, layers[layer] - have[mirror][layer])
            have[mirror][layer] += size
            upstream += size
        now += step
        for group in groups:
            group.left = [layer for layer in group.left if layers[layer] - group.got[layer] > 1.0]
        groups = [group for group in groups if group.left]
    return Result(now, upstream, between)


def _groups(mirrors: int, load: Load) -> list[_Nodes]:
    found = []
    for mirror in range(mirrors):
        nodes = load.nodes // mirrors + (mirror < load.nodes % mirrors)
        waves = min(_WAVES, nodes) if load.spread else 1
        for wave in range(waves):
            count = nodes // waves + (wave < nodes % waves)
            if count:
                begin = load.spread * wave / waves
                found.append(_Nodes(mirror, count, begin, [0.0] * len(load.layers), list(range(len(load.layers)))))
    return found


def _send(flows: list[_Flow], room: float) -> float:
    """Shares what a card sends in a step equally; who can take less leaves the rest to the others. Returns the bytes for other mirrors."""
    between, connections = 0.0, sum(flow.count for flow in flows)
    for flow in sorted(flows, key=lambda flow: flow.most):
        size = min(flow.most, room / connections)
        flow.to[flow.layer] += size
        room -= size * flow.count
        connections -= flow.count
        if flow.is_peer:
            between += size
    return between


MB = 1e6
MEASURED = {
    "three mirrors": (Fleet(3, 60 * MB, 1000 * MB), 12.2),
    "three that share nothing": (Fleet(3, 60 * MB, 1000 * MB, shares=False), 10.2),
    "one mirror": (Fleet(1, 60 * MB, 1000 * MB), 30.4),
}
"""What the simulation is calibrated by: seconds of 30 clients and a blob of 60 MB, with cards of 60 MB/s (tc htb) and a registry that is not the limit. One mirror stands for a balancer that sends a hot blob to one."""
MEASURED_LOAD = Load(30, (60 * MB,), 1000 * MB)
