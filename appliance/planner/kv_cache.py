"""The KV cache: bytes of a block, blocks of a sequence, blocks that fit.

Follows ``v1/core/kv_cache_utils.py`` and ``v1/kv_cache_interface.py`` of vLLM 0.32: layers with equal caches form
groups of one size; a block belongs to one group at a time and is as large as the pages of the largest group.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from appliance.config.layout import LayoutConfig
from appliance.planner.model_config import Attention, AttentionKind
from appliance.planner.weight_sharding import local_heads, stage_ends

# Bytes of one number, by ``kv_cache_dtype``.
_DTYPE_BYTES: Mapping[str, int] = {"fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "float16": 2, "bfloat16": 2, "float32": 4}

# Bytes of a token in a latent layer, for packed types (``state_content_bytes`` of vLLM's ``MLAAttention``).
_PACKED_TOKEN_BYTES: Mapping[str, int] = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}

# Groups whose numbers of layers differ by less than this factor are padded to the larger one.
_PADDING_FACTOR = 1.5


@dataclass(frozen=True, slots=True)
class _Pages:
    """The pages of one layer: tokens and bytes of each."""

    attention: Attention
    tokens: int
    size_bytes: int


@dataclass(frozen=True)
class KvCache:
    """The cache of one model in one layout; `attention` is that of each layer, empty for a model without a cache.

    `dtype` is vLLM's ``kv_cache_dtype``, `element_bytes` the size of the model's dtype, `in_flight` the maximum number
    of tokens being computed at once.
    """

    attention: Sequence[Attention]
    layout: LayoutConfig
    block_tokens: int
    element_bytes: int
    in_flight: int
    dtype: str = "auto"

    @cached_property
    def groups(self) -> Sequence[Sequence[int]]:
        """The layers of each group (``_get_kv_cache_groups_uniform_page_size`` of vLLM)."""
        layers_by_cache: defaultdict[tuple[AttentionKind, int, int], list[int]] = defaultdict(list)
        for layer, pages in enumerate(self._pages):
            layers_by_cache[pages.attention.kind, pages.attention.window, pages.tokens].append(layer)
        if not layers_by_cache:
            return ()
        sizes = [len(layers) for layers in layers_by_cache.values()]
        size = max(sizes) if max(sizes) < min(sizes) * _PADDING_FACTOR else min(sizes)
        counts = [(layers, -(-len(layers) // size)) for layers in layers_by_cache.values()]
        return [layers[start::count] for layers, count in counts for start in range(count)]

    @cached_property
    def block_bytes(self) -> tuple[int, ...]:
        """Bytes of a block on a rank of each pipeline stage."""
        return tuple(
            max(
                (sum(self._pages[layer].size_bytes for layer in group if layer in stage) for group in self.groups),
                default=0,
            )
            for stage in self._stages
        )

    @cached_property
    def token_bytes(self) -> int:
        """Bytes of one more token of a long sequence, on the rank with the most."""
        growing = (AttentionKind.FULL, AttentionKind.LATENT)
        bytes_by_layer = [
            (layer, self._pages[layer].size_bytes // self._pages[group[0]].tokens)
            for group in self.groups
            if self._pages[group[0]].attention.kind in growing
            for layer in group
        ]
        return max((sum(size for layer, size in bytes_by_layer if layer in stage) for stage in self._stages), default=0)

    def blocks_of(self, tokens: int) -> int:
        """Return the maximum number of blocks that a sequence takes."""
        return sum(self._blocks(self._pages[group[0]], tokens) for group in self.groups)

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
                kept = min(pages.attention.window - 1 + self.in_flight, tokens)
                return -(-kept // pages.tokens) + 1
            case AttentionKind.CHUNKED:
                return -(-min(pages.attention.window + self.in_flight, tokens) // pages.tokens)
            case _:
                return -(-tokens // (pages.tokens * self.layout.decode_context_parallel))

    @cached_property
    def _stages(self) -> list[range]:
        """The layers of each pipeline stage."""
        ends = stage_ends(len(self.attention), self.layout.pipeline_parallel)
        return [range(start, end) for start, end in pairwise((0, *ends))]

    @cached_property
    def _pages(self) -> list[_Pages]:
        """The pages of each layer, made equal: smaller ones hold more tokens, or are padded if that does not divide."""
        pages = [_Pages(each, self.block_tokens, self._page_bytes(each)) for each in self.attention]
        largest = max((each.size_bytes for each in pages), default=0)
        # Layers of one kind form one group, whatever the size of their pages.
        return (
            pages if len({each.attention.kind for each in pages}) <= 1 else [_enlarged(each, largest) for each in pages]
        )

    def _page_bytes(self, attention: Attention) -> int:
        size, tokens, ranks = (
            _DTYPE_BYTES.get(self.dtype, self.element_bytes),
            self.block_tokens,
            self.layout.tensor_parallel,
        )
        match attention.kind:
            case AttentionKind.STATE:
                return attention.elements // ranks * self.element_bytes
            case AttentionKind.LATENT:
                return tokens * _PACKED_TOKEN_BYTES.get(self.dtype, attention.elements * size)
            case _:
                return tokens * local_heads(attention.heads, ranks) * attention.elements * size


def _enlarged(pages: _Pages, size: int) -> _Pages:
    if pages.attention.kind is not AttentionKind.STATE and pages.size_bytes and size % pages.size_bytes == 0:
        return _Pages(pages.attention, pages.tokens * (size // pages.size_bytes), size)
    return replace(pages, size_bytes=size)
