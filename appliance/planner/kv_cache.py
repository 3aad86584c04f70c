"""The KV cache: bytes of a block, blocks of a sequence, blocks that fit.

Follows ``v1/core/kv_cache_utils.py`` and ``v1/kv_cache_interface.py`` of vLLM 0.32: layers with equal caches form
groups of one size; a block belongs to one group at a time and is as large as the pages of the largest group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from appliance.config.layout import LayoutConfig
from appliance.planner.model_config import Architecture, Attention, AttentionKind
from appliance.planner.weight_sharding import local_heads, stage_ends

# Bytes of one number, by ``kv_cache_dtype``.
_DTYPE_BYTES: Mapping[str, int] = {"fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "float16": 2, "bfloat16": 2, "float32": 4}

# Bytes of a token in a latent layer, for packed types (``state_content_bytes`` of vLLM's ``MLAAttention``).
_PACKED_TOKEN_BYTES: Mapping[str, int] = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}

# Groups whose numbers of layers differ by less than this factor are padded to the larger one.
_PADDING_FACTOR = 1.5


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """What the cache depends on besides the model and its layout.

    `dtype` is vLLM's ``kv_cache_dtype``, `element_bytes` the size of the model's dtype, `in_flight` the maximum number
    of tokens being computed at once.
    """

    block_tokens: int
    element_bytes: int
    in_flight: int
    dtype: str = "auto"


@dataclass(frozen=True, slots=True)
class _Pages:
    """The pages of one layer: tokens and bytes of each."""

    attention: Attention
    tokens: int
    size_bytes: int


@dataclass(frozen=True)
class KvCache:
    """The cache of one model in one layout; a model without a cache has no groups."""

    groups: tuple[tuple[_Pages, tuple[int, ...]], ...]
    """The pages of each group, and the indices of its layers."""

    layers: tuple[int, ...]
    """Bytes of one page of each layer."""

    ends: tuple[int, ...]
    """The end layer of each pipeline stage."""

    settings: CacheSettings
    context_ranks: int

    @cached_property
    def block_bytes(self) -> tuple[int, ...]:
        """Bytes of a block on a rank of each pipeline stage."""
        return tuple(self._block_bytes(stage) for stage in self._stages)

    @cached_property
    def token_bytes(self) -> int:
        """Bytes of one more token of a long sequence, on the rank with the most."""
        return max(map(self._token_bytes, self._stages), default=0)

    def blocks_of(self, tokens: int) -> int:
        """Return the maximum number of blocks that a sequence takes."""
        return sum(self._blocks(pages, tokens) for pages, _ in self.groups)

    def blocks_in(self, available: Sequence[int]) -> int:
        """Return how many blocks fit into the bytes available on a rank of each stage; the smallest stage decides."""
        return min((have // size for have, size in zip(available, self.block_bytes, strict=True) if size), default=0)

    def longest(self, blocks: int, limit: int) -> int:
        """Return the longest sequence that fits into `blocks`, up to `limit`; vLLM never uses one of the blocks."""
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
                # The window may start in the middle of a block.
                kept = min(pages.attention.window - 1 + self.settings.in_flight, tokens)
                return -(-kept // pages.tokens) + 1
            case AttentionKind.CHUNKED:
                return -(-min(pages.attention.window + self.settings.in_flight, tokens) // pages.tokens)
            case _:
                return -(-tokens // (pages.tokens * self.context_ranks))

    @property
    def _stages(self) -> list[range]:
        return [range(start, end) for start, end in pairwise((0, *self.ends))]

    def _block_bytes(self, stage: range) -> int:
        return max((sum(self.layers[each] for each in layers if each in stage) for _, layers in self.groups), default=0)

    def _token_bytes(self, stage: range) -> int:
        growing = [
            (pages, layers)
            for pages, layers in self.groups
            if pages.attention.kind in (AttentionKind.FULL, AttentionKind.LATENT)
        ]
        return sum(self.layers[each] // pages.tokens for pages, layers in growing for each in layers if each in stage)


def kv_cache(model: Architecture, layout: LayoutConfig, settings: CacheSettings) -> KvCache:
    """Return the cache of a model in a layout."""
    pages = _equal_pages([_pages(each, layout, settings) for each in model.attention])
    return KvCache(
        groups=tuple(_groups(pages)),
        layers=tuple(each.size_bytes for each in pages),
        ends=tuple(stage_ends(len(pages), layout.pipeline_parallel)),
        settings=settings,
        context_ranks=layout.decode_context_parallel,
    )


def _pages(attention: Attention, layout: LayoutConfig, settings: CacheSettings) -> _Pages:
    size = _DTYPE_BYTES.get(settings.dtype, settings.element_bytes)
    if attention.kind is AttentionKind.STATE:
        return _Pages(
            attention, settings.block_tokens, attention.elements // layout.tensor_parallel * settings.element_bytes
        )
    if attention.kind is AttentionKind.LATENT:
        token = _PACKED_TOKEN_BYTES.get(settings.dtype, attention.elements * size)
        return _Pages(attention, settings.block_tokens, settings.block_tokens * token)
    heads = local_heads(attention.heads, layout.tensor_parallel)
    return _Pages(attention, settings.block_tokens, settings.block_tokens * heads * attention.elements * size)


def _equal_pages(pages: list[_Pages]) -> list[_Pages]:
    """Give all pages one size: smaller pages hold more tokens, or are padded if the sizes do not divide."""
    kinds = {each.attention.kind for each in pages}
    # Layers of one kind form one group, whatever the size of their pages.
    if len(kinds) <= 1 or len({each.size_bytes for each in pages}) == 1:
        return pages
    largest = max(each.size_bytes for each in pages)
    return [_enlarged(each, largest) for each in pages]


def _enlarged(pages: _Pages, size: int) -> _Pages:
    if pages.attention.kind is not AttentionKind.STATE and size % pages.size_bytes == 0:
        return _Pages(pages.attention, pages.tokens * (size // pages.size_bytes), size)
    return replace(pages, size_bytes=size)


def _groups(pages: Sequence[_Pages]) -> Iterable[tuple[_Pages, tuple[int, ...]]]:
    """Yield the groups of layers (``_get_kv_cache_groups_uniform_page_size`` of vLLM)."""
    layers_by_cache: dict[tuple[AttentionKind, int, int], list[int]] = {}
    for number, each in enumerate(pages):
        layers_by_cache.setdefault((each.attention.kind, each.attention.window, each.tokens), []).append(number)
    if not layers_by_cache:
        return
    sizes = [len(layers) for layers in layers_by_cache.values()]
    size = max(sizes) if max(sizes) < min(sizes) * _PADDING_FACTOR else min(sizes)
    for layers in layers_by_cache.values():
        count = -(-len(layers) // size)
        for start in range(count):
            group = layers[start::count]
            yield pages[group[0]], tuple(group)
