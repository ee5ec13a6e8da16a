"""Requests for blobs as registries see them, made up from what is published of production registries, or read from a file.

The model has images of a base and layers of their own, machines that ask only for layers that they do not have, new versions that replace the upper layers of old
ones, bases that are rebuilt now and then, and builds that are pulled once. Of what comes out, the published figures are these (`Figures`, printed with every table):

* about two thirds of all blobs are asked for once;
* 6 % of the requests are for more than 64 MiB, and carry 65 % of the bytes: layers' sizes are log-normal, with the one sigma for which that holds.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

MIB = 1024 * 1024
LARGE = 64 * MIB
LARGEST = 8 * 1024 * MIB

Name = int | str
Request = tuple[Name, int]
"""A blob's name, and its size in bytes."""


@dataclass(frozen=True)
class Workload:
    """A kind of site."""

    name: str
    requests: int = 60_000
    repositories: int = 600
    skew: float = 1.0
    """Exponent of the Zipf distribution of the images' popularity, and of the bases'."""
    builds: float = 0.16
    """The share of pulls that are of a fresh build, which few ask for again."""
    releases: float = 0.02
    """New versions a pull; later pulls take the new one."""
    machines: int = 40
    fresh: float = 0.3
    """The share of pulls by machines that have nothing yet."""


SKEWED = Workload("skewed")
WORKLOADS = (
    SKEWED,
    Workload("builds", builds=0.4),
    Workload("releases", builds=0.1, releases=0.1, fresh=0.2),
    Workload("even", skew=0.7, repositories=1500),
)


@dataclass
class _Image:
    base: int
    base_layers: Sequence[int]
    own: list[int]
    config: int

    @property
    def blobs(self) -> list[int]:
        return [self.config, *self.base_layers, *self.own]


class _Site:
    """The blobs of one run of the model, numbered as they come into being."""

    def __init__(self, workload: Workload, seed: int) -> None:
        self._random = random.Random(f"{workload.name} {seed}")
        self._workload = workload
        self.sizes: list[int] = []
        self._bases = [self._layers(1, 4) for _ in range(max(4, workload.repositories // 20))]
        self._base_weights = _zipf(len(self._bases), workload.skew)
        self._images = [self._image() for _ in range(workload.repositories)]
        self._weights = _zipf(workload.repositories, workload.skew)

    def _blob(self, size: int) -> int:
        self.sizes.append(size)
        return len(self.sizes) - 1

    def _layers(self, least: int, most: int) -> list[int]:
        return [self._blob(_layer_size(self._random)) for _ in range(self._random.randint(least, most))]

    def _config(self) -> int:
        return self._blob(self._random.randint(1_000, 15_000))

    def _image(self) -> _Image:
        base = self._random.choices(range(len(self._bases)), cum_weights=self._base_weights)[0]
        return _Image(base, self._bases[base], self._layers(1, 8), self._config())

    def _next_version(self, image: _Image) -> _Image:
        """The upper layers anew, as a changed line of a Dockerfile does; on the base as it is now."""
        kept = self._random.randrange(len(image.own)) if image.base_layers is self._bases[image.base] else 0
        changed = [self._blob(_layer_size(self._random)) for _ in image.own[kept:]]
        return _Image(image.base, self._bases[image.base], image.own[:kept] + changed, self._config())

    def requests(self) -> Iterable[Request]:
        """Without end."""
        chance, pick, workload = self._random.random, self._random.choices, self._workload
        held: list[set[int]] = [set() for _ in range(workload.machines)]
        numbers = range(workload.repositories)
        while True:
            if chance() < workload.releases:
                number = pick(numbers, cum_weights=self._weights)[0]
                self._images[number] = self._next_version(self._images[number])
                if chance() < 0.05:
                    base = pick(range(len(self._bases)), cum_weights=self._base_weights)[0]
                    self._bases[base] = [self._blob(_layer_size(self._random)) for _ in self._bases[base]]
            image = self._images[pick(numbers, cum_weights=self._weights)[0]]
            if chance() < workload.builds:
                image = self._next_version(image)
            machine = set() if chance() < workload.fresh else held[self._random.randrange(workload.machines)]
            if chance() < 0.005:
                machine.clear()  # somebody has cleaned up
            for blob in image.blobs:
                if blob not in machine:
                    machine.add(blob)
                    yield blob, self.sizes[blob]


def synthetic(workload: Workload, seed: int) -> list[Request]:
    """The same for the same arguments, on every machine."""
    return list(itertools.islice(_Site(workload, seed).requests(), workload.requests))


def returning(seed: int, requests: int) -> list[Request]:
    """A trace without popular blobs: six in ten are asked for once, the others once more, at any time within a tenth of the trace.

    So a blob's second use comes late, which LRU bears better than a fixed small queue does.
    """
    source = random.Random(f"returning {seed}")
    found: list[tuple[float, int, int]] = []
    for blob in range(round(requests / 1.4)):
        time, size = source.random(), _layer_size(source)
        found.append((time, blob, size))
        if source.random() > 0.6 and (later := time + source.uniform(0, 0.1)) < 1:
            found.append((later, blob, size))
    return [(blob, size) for _, blob, size in sorted(found)]


def _zipf(count: int, exponent: float) -> list[float]:
    return list(itertools.accumulate(1 / rank**exponent for rank in range(1, count + 1)))


# A sixth of the requests, about, is for configs, which are small: 6 % of all are then 7.2 % of those for layers.
_ABOVE = NormalDist().inv_cdf(1 - 0.06 * 6 / 5)
# Of a log-normal distribution's total, the part above its quantile z is Phi(sigma - z).
_SIGMA = _ABOVE + NormalDist().inv_cdf(0.65)
_MU = math.log(LARGE) - _ABOVE * _SIGMA


def _layer_size(source: random.Random) -> int:
    return _clamped(source.lognormvariate(_MU, _SIGMA))


def _layer_size_at(share: float) -> int:
    """The size that a share of all layers does not exceed."""
    return _clamped(math.exp(_MU + _SIGMA * NormalDist().inv_cdf(share)))


def _clamped(size: float) -> int:
    return min(LARGEST, max(100, round(size)))


def read_names(file: Path) -> list[Request]:
    """A trace of names only, one a line, in the order of the requests; gzip where it ends in ``.gz``. Sizes follow from a hash of the name. Raises OSError."""
    with gzip.open(file, "rt") if file.suffix == ".gz" else open(file, encoding="utf-8") as lines:
        names = [line.strip() for line in lines]
    sizes = {
        name: _layer_size_at((int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") + 0.5) / 2**64)
        for name in set(names)
    }
    return [(name, sizes[name]) for name in names]


def read(file: Path) -> list[Request]:
    """A trace of one's own: a line a request, ``time digest size`` with white space or commas between, size in bytes, `#` for comments. Raises ValueError, OSError."""
    found: list[tuple[float, str, int]] = []
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            fields = line.partition("#")[0].replace(",", " ").split()
            if not fields:
                continue
            try:
                time, digest, size = float(fields[0]), fields[1], int(fields[2])
            except (ValueError, IndexError):
                raise ValueError(
                    f"{file}, line {number}: time, digest and size are expected, found {line.strip()[:100]!r}"
                ) from None
            if size < 0 or math.isnan(time):
                raise ValueError(f"{file}, line {number}: a size and a time are expected, found {line.strip()[:100]!r}")
            found.append((time, digest, size))
    found.sort(key=lambda request: request[0])
    # A blob has one size: what a log says of a part of it, or of a HEAD, must not make others of it.
    sizes: dict[str, int] = {}
    for _, digest, size in found:
        sizes[digest] = max(size, sizes.get(digest, 0))
    return [(digest, sizes[digest]) for _, digest, _ in found]


@dataclass(frozen=True)
class Figures:
    """What a trace is like. Shares are of 1."""

    requests: int
    blobs: int
    working_set: int
    """Bytes of all blobs."""
    once: float
    """The share of blobs that are asked for once."""
    large_requests: float
    large_bytes: float

    @classmethod
    def of(cls, trace: Sequence[Request]) -> Figures:
        sizes = dict(trace)
        counts = Counter(blob for blob, _ in trace)
        total = sum(size for _, size in trace) or 1
        large = [size for _, size in trace if size > LARGE]
        once = sum(count == 1 for count in counts.values())
        return cls(
            len(trace),
            len(sizes),
            sum(sizes.values()),
            once / max(1, len(sizes)),
            len(large) / max(1, len(trace)),
            sum(large) / total,
        )

    def __str__(self) -> str:
        return (
            f"{self.requests} requests for {self.blobs} blobs of {self.working_set / 1e9:.0f} GB; {self.once:.0%} of the blobs are asked for once;"
            f" {self.large_requests:.1%} of the requests are above 64 MiB and carry {self.large_bytes:.0%} of the bytes"
        )
