"""The simulator: its traces are what they are said to be, and no policy has more than its share."""

from __future__ import annotations

import copy
import gzip
import os
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import pytest

from benchmarks.eviction.__main__ import BAR, BEHIND_LRU, OWN, SIZES, main, play
from benchmarks.eviction.policies import POLICIES
from benchmarks.eviction.traces import SKEWED, WORKLOADS, Figures, Request, Workload, read, read_names, returning, synthetic

PAGE = (Path(__file__).parents[2] / "docs" / "eviction.md").read_text()
SHORT = synthetic(Workload("short", requests=5000, repositories=100), 1)


def test_the_made_up_traces_have_the_published_figures() -> None:
    """Two thirds of the blobs once, 6 % of requests above 64 MiB with 65 % of the bytes: the skewed kind on average over seeds; sizes in all kinds."""
    figures = [Figures.of(synthetic(SKEWED, seed)) for seed in range(8)]
    assert sum(one.once for one in figures) / 8 == pytest.approx(2 / 3, abs=0.03)
    figures += [Figures.of(synthetic(workload, seed)) for workload in WORKLOADS[1:] for seed in range(4)]
    assert sum(one.large_requests for one in figures) / len(figures) == pytest.approx(0.06, abs=0.01)
    assert sum(one.large_bytes for one in figures) / len(figures) == pytest.approx(0.65, abs=0.05)


def test_a_trace_is_the_same_every_time() -> None:
    """For one seed; and another for another."""
    assert synthetic(SKEWED, 3)[:500] == synthetic(SKEWED, 3)[:500]
    assert synthetic(SKEWED, 3)[:500] != synthetic(SKEWED, 4)[:500]


@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_holds_more_than_it_may(policy: str) -> None:
    """At any time, what would hit is no larger than the cache."""
    sizes = dict(SHORT)
    capacity = sum(sizes.values()) // 20
    cache = POLICIES[policy](capacity)
    for number, (blob, size) in enumerate(SHORT):
        cache.request(blob, size)
        if number % 2500 == 2499:
            assert sum(size for blob, size in sizes.items() if copy.deepcopy(cache).request(blob, size)) <= capacity


@pytest.mark.parametrize("policy", POLICIES)
def test_extremes(policy: str) -> None:
    """A cache that everything fits into misses each blob once; one that nothing fits into never hits."""
    sizes = dict(SHORT)
    total = sum(size for _, size in SHORT)
    by_bytes, by_requests = play(policy, 2 * sum(sizes.values()), SHORT)
    assert by_bytes == pytest.approx(1 - sum(sizes.values()) / total)
    assert by_requests == pytest.approx(1 - len(sizes) / len(SHORT))
    assert play(policy, 0, SHORT) == (0.0, 0.0)


def test_the_mirrors_policy_reaches_its_bar_and_the_page_has_the_figures() -> None:
    """On the skewed traces: the ratio to LRU's byte hits at 10 %; and in the table of docs/eviction.md, in this order, all that is said of LRU and of the
    mirror's policy, and of the others at 10 %. (All of it would take half a minute.)"""
    traces = [synthetic(SKEWED, seed) for seed in range(5)]
    tenth = SIZES.index(0.1)
    section = PAGE.partition("## Made-up traffic")[2].partition("\n## ")[0]
    rows = [re.findall(r"\d+\.\d", line)[: len(SIZES)] for line in section.splitlines() if re.search(r"\d+\.\d \|", line)]
    assert len(rows) == len(POLICIES)
    for policy, row in zip(POLICIES, rows, strict=True):
        for place in range(len(SIZES)) if policy in (OWN, "LRU") else [tenth]:
            assert row[place] == f"{median_of(policy, SIZES[place], traces):.1%}"[:-1], policy
    assert float(rows[list(POLICIES).index(OWN)][tenth]) >= BAR * float(rows[list(POLICIES).index("LRU")][tenth])


def median_of(policy: str, size: float, traces: Sequence[Sequence[Request]]) -> float:
    """The byte hit ratio of a policy in a cache of some share of what each trace asks for."""
    return median(play(policy, int(size * Figures.of(trace).working_set), trace)[0] for trace in traces)


def behind_lru(policy: str, trace: Sequence[Request], sizes: Sequence[float] = SIZES) -> float:
    """The most by which a policy's byte hit ratio is less than LRU's, of 1."""
    working_set = Figures.of(trace).working_set
    capacities = [int(size * working_set) for size in sizes]
    return max(play("LRU", capacity, trace)[0] - play(policy, capacity, trace)[0] for capacity in capacities)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_the_mirrors_policy_is_never_far_behind_lru(workload: Workload) -> None:
    """At no size by more than a point of the byte hit ratio, on each kind of made-up traffic."""
    assert behind_lru(OWN, synthetic(workload, 0)) <= BEHIND_LRU


def test_the_small_queue_adapts_to_blobs_that_return_late() -> None:
    """Where S3-FIFO with a fixed small queue is far behind LRU, the mirror's is not."""
    trace = returning(0, 20_000)
    small = [size for size in SIZES if size <= 0.05]
    assert behind_lru("S3-FIFO", trace, small) > 3 * BEHIND_LRU
    assert behind_lru(OWN, trace, small) <= BEHIND_LRU


@pytest.mark.skipif("MIRROR_TRACE" not in os.environ, reason="MIRROR_TRACE names no file with a real trace, one digest a line")
def test_the_mirrors_policy_on_a_real_trace() -> None:
    """At no size is it behind LRU by more than a point."""
    assert behind_lru(OWN, read_names(Path(os.environ["MIRROR_TRACE"]))) <= BEHIND_LRU


def test_a_trace_of_names_has_sizes(tmp_path: Path) -> None:
    """Each name has one size, the same every time, compressed or not."""
    plain, compressed = tmp_path / "trace.txt", tmp_path / "trace.txt.gz"
    plain.write_text("a\nb\na\n")
    with gzip.open(compressed, "wt") as file:
        file.write(plain.read_text())
    (first, size), (other, _), again = read_names(plain)
    assert (first, other) == ("a", "b")
    assert again == ("a", size)
    assert read_names(compressed) == read_names(plain)


def test_a_trace_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """White space or commas, comments, out of order; a blob's size is the largest that is said of it."""
    file = tmp_path / "trace"
    file.write_text("# time digest size\n3, sha256:b, 50\n1 sha256:a 7\n\n2.5\tsha256:b\t100  # whole\n")
    assert read(file) == [("sha256:a", 7), ("sha256:b", 100), ("sha256:b", 100)]
    file.write_text("".join(f"{number} {blob} {size}\n" for number, (blob, size) in enumerate(SHORT)))
    assert main(["--trace", str(file)]) == 0
    printed = capsys.readouterr().out
    assert all(policy in printed for policy in POLICIES)


@pytest.mark.parametrize("line", ["1 sha256:a", "now sha256:a 7", "1 sha256:a -7", "nan sha256:a 7", "1 sha256:a big"])
def test_a_trace_that_makes_no_sense(tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str) -> None:
    """The file, the line and what was found are named."""
    file = tmp_path / "trace"
    file.write_text(f"0 sha256:a 7\n{line}\n")
    assert main(["--trace", str(file)]) == 2
    assert f"{file}, line 2" in capsys.readouterr().err
    assert main(["--trace", str(tmp_path / "absent")]) == 2
