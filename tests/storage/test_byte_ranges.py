"""The arithmetic of ranges."""

from __future__ import annotations

import pytest

from appliance.config.storage import TransferConfig
from appliance.storage.download.downloader import ChunkSizes
from appliance.storage.download.journal import ByteRange, missing_ranges

MIB = 1 << 20


@pytest.mark.parametrize(
    ("held", "missing"),
    [
        ([], [(0, 10)]),
        ([(0, 10)], []),
        ([(0, 3), (3, 5)], [(5, 10)]),
        ([(2, 3), (8, 10)], [(0, 2), (3, 8)]),
    ],
)
def test_gaps_are_what_is_not_held(held: list[tuple[int, int]], missing: list[tuple[int, int]]) -> None:
    """Before, between and behind the spans that are there."""
    assert list(missing_ranges((ByteRange(*span) for span in held), 10)) == [ByteRange(*span) for span in missing]


def test_an_empty_file_has_no_gap() -> None:
    """There is nothing to fetch of it."""
    assert list(missing_ranges([], 0)) == []


def test_a_span_is_cut_without_loss() -> None:
    """The parts follow one another, and only the last is smaller."""
    assert list(ByteRange(5, 30).split(10)) == [ByteRange(5, 15), ByteRange(15, 25), ByteRange(25, 30)]


@pytest.mark.parametrize("total", [20 * MIB, 100 * MIB, 10**9, 10**12])
@pytest.mark.parametrize("parallel", [1, 8, 10])
def test_a_kill_can_cost_no_more_than_a_25th(total: int, parallel: int) -> None:
    """All requests together have no more than that under way at any moment, asked for or in the kernel's buffers."""
    sizes = ChunkSizes.of(total, TransferConfig(parallel=parallel))

    assert sizes.parallel * min(sizes.chunk, 4 * MIB) <= total / 25
    assert sizes.parallel <= parallel
    assert sizes.piece <= sizes.chunk


def test_a_small_model_is_fetched_in_few_requests() -> None:
    """Of a size that is worth a request, and thus not many at once: a kill may cost no more than of a large model."""
    sizes = ChunkSizes.of(10_000_000, TransferConfig())

    assert sizes == ChunkSizes(parallel=2, chunk=200_000, piece=200_000)
    assert ChunkSizes.of(100_000_000, TransferConfig()).parallel == 8


def test_a_request_asks_for_no_more_than_the_config_says() -> None:
    """However large the model, and for no less than is worth a request, however small."""
    assert ChunkSizes.of(10**12, TransferConfig(chunk_bytes=MIB)).chunk == MIB
    assert ChunkSizes.of(1, TransferConfig()).chunk == 64 * 1024
