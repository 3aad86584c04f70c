"""Rules about several keys at once, which a schema cannot say."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from appliance.config.raw_config import RawConfig
from appliance.config.source_location import Diagnostic
from appliance.config.validators import adapters, engines, keys, layouts, names, server, storage, upstreams

Validator = Callable[[RawConfig], Iterator[Diagnostic]]

VALIDATORS: tuple[Validator, ...] = (
    names.names_are_unique,
    server.listeners_are_apart,
    server.workers_share_what_can_be_shared,
    server.an_operator_has_one_process,
    keys.keys_are_apart,
    keys.keys_lead_to_models,
    keys.an_operator_has_a_key,
    storage.schemes_are_known,
    layouts.sizes_fit,
    layouts.devices_fit,
    layouts.nodes_fit,
    layouts.nodes_meet_apart,
    layouts.the_cache_is_sized_once,
    layouts.memory_fractions_fit,
    engines.encoder_keys_fit_the_task,
    engines.python_models_have_their_own_keys,
    upstreams.headers_may_travel,
    upstreams.addresses_are_possible,
    upstreams.addresses_are_bases,
    adapters.targets_complete_prompts,
)
"""Every rule; each takes a draft that need not be right in any other way."""
