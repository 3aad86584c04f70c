"""Validators of what a schema cannot express, such as two keys that exclude each other.

They run on raw config in which values with errors are UNKNOWN, so that all errors of a file are found in one run,
although the config cannot be built from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from appliance.config.raw_config import Diagnostic, RawConfig
from appliance.config.validators import layouts, models, server

Validator = Callable[[RawConfig], Iterator[Diagnostic]]

VALIDATORS: tuple[Validator, ...] = (
    models.names_are_unique,
    models.upstream_names_are_unique,
    models.request_fields_are_kept_or_dropped,
    models.python_models_have_no_vllm_keys,
    models.onnx_models_have_no_vllm_keys,
    models.pickles_are_allowed,
    models.encoder_keys_fit_the_task,
    models.serving_options_fit_the_class,
    models.targets_complete_prompts,
    models.fallbacks_can_answer,
    server.ports_are_distinct,
    server.workers_can_share_engines,
    server.admin_is_safe,
    server.keys_are_distinct,
    server.keys_name_models,
    layouts.layouts_are_possible,
    layouts.nodes_have_own_ports,
    layouts.cache_size_is_set_once,
    layouts.memory_fractions_fit,
    layouts.shared_devices_have_limits,
    models.headers_can_be_forwarded,
    models.addresses_are_bases,
)
