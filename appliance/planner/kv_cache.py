"""The KV cache: what a block of it takes, how many blocks a text needs, how many there are.

The arithmetic is that of vLLM 0.32's ``v1/core/kv_cache_utils.py`` and ``v1/kv_cache_interface.py``: layers that cache
alike form groups of one size, a block belongs to one group at a time, and is as large as the largest group's pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from appliance.config.layout import LayoutConfig
from appliance.planner.attention import Attention, AttentionKind
from appliance.planner.model_config import Architecture
from appliance.planner.weight_sharding import local_heads, stage_ends

# Types of the cache that take less than the model's own: bytes of one number (``kv_cache_dtype``).
_BYTES: Mapping[str, int] = {"fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "float16": 2, "bfloat16": 2, "float32": 4}

# Bytes of a token in a layer, whatever its size (``state_content_bytes`` of vLLM's ``MLAAttention``).
_PACKED: Mapping[str, int] = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}

# Groups of layers whose numbers differ by less than this are filled up to the larger one, and share its size.
_ALIKE = 1.5


@dataclass(frozen=True, slots=True)
class Terms:
    """What the cache depends on beside the model and its layout.

    `dtype` is vLLM's name of the cache's type, `element_bytes` those of the model's own; `in_flight` is how many tokens
    may be under way at once.
    """

    block_tokens: int
    element_bytes: int
    in_flight: int
    dtype: str = "auto"


@dataclass(frozen=True, slots=True)
class _Pages:
    """The pages of one layer: what it caches, tokens and bytes in each."""

    attention: Attention
    tokens: int
    size_bytes: int


@dataclass(frozen=True)
class KvCache:
    """The cache of one model in one layout; without groups, nothing is cached."""

    groups: tuple[tuple[_Pages, tuple[int, ...]], ...]
    """The pages of each group, and the numbers of its layers."""

    layers: tuple[int, ...]
    """Bytes of a page of each layer."""

    ends: tuple[int, ...]
    """After which layer each pipeline stage ends."""

    terms: Terms
    context_ranks: int

    @cached_property
    def block_bytes(self) -> tuple[int, ...]:
        """Bytes of a block on a rank of each pipeline stage."""
        starts = (0, *self.ends[:-1])
        return tuple(self._largest(range(start, end)) for start, end in zip(starts, self.ends, strict=True))

    @cached_property
    def token_bytes(self) -> int:
        """Bytes that one more token of a long text takes, on the rank where that is most."""
        starts = (0, *self.ends[:-1])
        return max((self._growth(range(start, end)) for start, end in zip(starts, self.ends, strict=True)), default=0)

    def blocks_of(self, tokens: int) -> int:
        """Blocks that a text of so many tokens takes at most."""
        return sum(self._blocks(pages, tokens) for pages, _ in self.groups)

    def blocks_in(self, available: Sequence[int]) -> int:
        """Blocks that fit into so many bytes on a rank of each stage; the smallest stage decides."""
        return min((have // size for have, size in zip(available, self.block_bytes, strict=True) if size), default=0)

    def longest(self, blocks: int, limit: int) -> int:
        """The longest text that fits into so many blocks, up to `limit`; one block is never used."""
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.blocks_of(middle) < blocks else (low, middle - 1)
        return low

    def _blocks(self, pages: _Pages, tokens: int) -> int:
        match pages.attention.kind:
            case AttentionKind.STATE:
                return 1
            case AttentionKind.SLIDING:
                # The window need not begin where a block does.
                kept = min(pages.attention.window - 1 + self.terms.in_flight, tokens)
                return -(-kept // pages.tokens) + 1
            case AttentionKind.CHUNKED:
                return -(-min(pages.attention.window + self.terms.in_flight, tokens) // pages.tokens)
            case _:
                return -(-tokens // (pages.tokens * self.context_ranks))

    def _largest(self, mine: range) -> int:
        return max((sum(self.layers[each] for each in layers if each in mine) for _, layers in self.groups), default=0)

    def _growth(self, mine: range) -> int:
        grows = [
            (pages, layers)
            for pages, layers in self.groups
            if pages.attention.kind in (AttentionKind.FULL, AttentionKind.LATENT)
        ]
        return sum(self.layers[each] // pages.tokens for pages, layers in grows for each in layers if each in mine)


def cache_of(model: Architecture, layout: LayoutConfig, terms: Terms) -> KvCache:
    """The cache of a model in a layout."""
    pages = _of_one_size([_pages(each, layout, terms) for each in model.attention])
    return KvCache(
        groups=tuple(_groups(pages)),
        layers=tuple(each.size_bytes for each in pages),
        ends=tuple(stage_ends(len(pages), layout.pipeline_parallel)),
        terms=terms,
        context_ranks=layout.decode_context_parallel,
    )


def _pages(attention: Attention, layout: LayoutConfig, terms: Terms) -> _Pages:
    size = _BYTES.get(terms.dtype, terms.element_bytes)
    if attention.kind is AttentionKind.STATE:
        return _Pages(attention, terms.block_tokens, attention.elements // layout.tensor_parallel * terms.element_bytes)
    if attention.kind is AttentionKind.LATENT:
        token = _PACKED.get(terms.dtype, attention.elements * size)
        return _Pages(attention, terms.block_tokens, terms.block_tokens * token)
    heads = local_heads(attention.heads, layout.tensor_parallel)
    return _Pages(attention, terms.block_tokens, terms.block_tokens * heads * attention.elements * size)


def _of_one_size(pages: list[_Pages]) -> list[_Pages]:
    """Pages of one size: smaller ones hold more tokens, or are padded where that does not come out even."""
    kinds = {each.attention.kind for each in pages}
    # Layers that all grow alike form one group, whatever the size of their pages.
    if len(kinds) <= 1 or len({each.size_bytes for each in pages}) == 1:
        return pages
    largest = max(each.size_bytes for each in pages)
    return [_grown(each, largest) for each in pages]


def _grown(pages: _Pages, size: int) -> _Pages:
    if pages.attention.kind is not AttentionKind.STATE and size % pages.size_bytes == 0:
        return _Pages(pages.attention, pages.tokens * (size // pages.size_bytes), size)
    return replace(pages, size_bytes=size)


def _groups(pages: Sequence[_Pages]) -> Iterable[tuple[_Pages, tuple[int, ...]]]:
    """Groups of layers (``_get_kv_cache_groups_uniform_page_size``)."""
    alike: dict[tuple[AttentionKind, int, int], list[int]] = {}
    for number, each in enumerate(pages):
        alike.setdefault((each.attention.kind, each.attention.window, each.tokens), []).append(number)
    if not alike:
        return
    sizes = [len(layers) for layers in alike.values()]
    size = max(sizes) if max(sizes) < min(sizes) * _ALIKE else min(sizes)
    for layers in alike.values():
        count = -(-len(layers) // size)
        for start in range(count):
            mine = layers[start::count]
            yield pages[mine[0]], tuple(mine)
