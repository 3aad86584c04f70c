"""Everything we touch of vLLM, so that a new version says at once what it moved."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from prometheus_client import CollectorRegistry, Histogram

from appliance.config.engine import FRONT_END, OWNED, EngineConfig, ServingConfig
from appliance.config.json_schema import ENGINE_NAME, directory
from appliance.config.layout import LayoutConfig, NodesConfig
from appliance.engines.vllm import engine_args, schema
from appliance.engines.vllm.engine_args import EngineSpec, NodeAddresses, Pooler, engine_arguments, layout_arguments
from appliance.engines.vllm.env import layout_environment
from appliance.engines.vllm.metrics import observe_all
from appliance.engines.vllm.patches import SingleWaiterEvent, hold_forced_calls_to_their_schema

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CONFIGURE_LOGGING", "0")


def _get(path: str) -> Any:  # Any: vLLM has no types for us
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_the_schema_of_the_engine_arguments_is_what_vllm_says() -> None:
    """The committed schema of vLLM's arguments belongs to the vLLM that is installed."""
    assert (directory() / ENGINE_NAME).read_text(encoding="utf-8") == schema.generate()


def test_every_option_of_its_front_end_is_a_key_or_refused_with_a_reason() -> None:
    """Each key of `engine.serving` has vLLM's name, values and default; a new option of vLLM is one or the other."""
    options = {each.name: each for each in dataclasses.fields(_get("vllm.entrypoints.launchers.cli_args.FrontendArgs"))}
    keys = ServingConfig.model_json_schema()["properties"]
    ours = keys.keys() - {"clamp_max_tokens"}

    others = {each.name for each in dataclasses.fields(_get("vllm.engine.arg_utils.AsyncEngineArgs"))}

    assert (ours | FRONT_END.keys(), ours & FRONT_END.keys()) == (options.keys() - others, set())
    for name in ours:
        theirs = schema._property(options[name], None)
        assert keys[name].get("enum") == theirs.get("enum"), name
        assert keys[name].get("default") == theirs.get("default"), name
        types = {each.get("type") for each in (keys[name], *keys[name].get("anyOf", ()))} - {None}
        assert types <= {*schema._listed(theirs["type"])}, name


def test_every_argument_we_pass_is_one_it_takes(tmp_path: Path) -> None:
    """All engine arguments that a config can lead to are fields of `AsyncEngineArgs`."""
    (tmp_path / "adapter_config.json").write_text('{"r": 9}')
    engine = EngineConfig(
        max_model_len=1, max_num_seqs=1, quantization="fp8", kv_cache_memory_bytes=1, stream_interval=4
    )
    setup = EngineSpec(
        name="a",
        artifact=tmp_path,
        layout=LayoutConfig(memory_fraction=0.5),
        engine=engine,
        lora_adapters={"x": tmp_path},
    )
    fields = {each.name for each in dataclasses.fields(_get("vllm.engine.arg_utils.AsyncEngineArgs"))}

    made = engine_arguments(setup, on_cpu=True)

    assert set(made) <= fields
    assert made["stream_interval"] == 4
    assert made["max_lora_rank"] == 16


def test_every_key_of_a_layout_is_an_argument_it_takes() -> None:
    """
    A layout that says all it can leads to fields of `AsyncEngineArgs` alone, and each of them is refused under `args`.
    """
    layout = LayoutConfig(
        devices=(0, 1, 2, 3),
        tensor_parallel=4,
        pipeline_parallel=2,
        data_parallel=4,
        data_parallel_local=2,
        data_parallel_address="a",
        expert_parallel=True,
        decode_context_parallel=2,
        memory_fraction=0.5,
        cpu_offload_gib=1,
        nodes=NodesConfig(count=2, rank=1, address="a"),
        executor="multiprocess",
    )
    fields = {each.name for each in dataclasses.fields(_get("vllm.engine.arg_utils.AsyncEngineArgs"))}

    made = layout_arguments(layout)

    assert made.keys() <= fields & OWNED.keys()
    assert made["device_ids"] == [0, 1, 2, 3]
    assert (made["data_parallel_size"], made["data_parallel_size_local"]) == (4, 2)
    assert (made["distributed_executor_backend"], made["enable_expert_parallel"]) == ("mp", True)
    assert layout_arguments(LayoutConfig()) == {"tensor_parallel_size": 1, "pipeline_parallel_size": 1}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_copy_is_spread_over_machines_or_each_machine_has_its_own(rank: int) -> None:
    """
    One copy is vLLM's nodes; several are copies of which each machine has its share, where a first copy that is told of
    makes a machine a follower, and so is not told to rank 0. The address is the one by which the machines met.
    """
    nodes = NodesConfig(count=2, rank=rank, address="lead", port=7000)
    spread = LayoutConfig(tensor_parallel=4, nodes=nodes)
    whole = LayoutConfig(tensor_parallel=2, data_parallel=4, nodes=nodes)
    addresses = NodeAddresses(own="192.0.2.7", leader="192.0.2.1")
    fields = {each.name for each in dataclasses.fields(_get("vllm.engine.arg_utils.AsyncEngineArgs"))}

    one, several = layout_arguments(spread, addresses), layout_arguments(whole, addresses)

    assert (one.keys() | several.keys()) <= fields & OWNED.keys()
    assert (one["nnodes"], one["node_rank"]) == (2, rank)
    assert (one["master_addr"], one["master_port"]) == ("192.0.2.1", 7001)
    assert "nnodes" not in several
    assert (several["data_parallel_size"], several["data_parallel_size_local"]) == (4, 2)
    assert (several["data_parallel_address"], several["data_parallel_rpc_port"]) == ("192.0.2.1", 7001)
    assert several.get("data_parallel_start_rank") == (2 if rank else None)


def test_a_machine_says_by_which_address_and_interface_it_is_reached() -> None:
    """vLLM and gloo hear of the network that leads to the other machines; an address of no interface names none."""
    layout = LayoutConfig(tensor_parallel=2, nodes=NodesConfig(count=2, address="lead"))

    near = layout_environment(layout, NodeAddresses(own="127.0.0.1", leader="127.0.0.1"))
    far = layout_environment(layout, NodeAddresses(own="192.0.2.7", leader="192.0.2.1"))

    assert (near["VLLM_HOST_IP"], near["GLOO_SOCKET_IFNAME"]) == ("127.0.0.1", "lo")
    assert far["VLLM_HOST_IP"] == "192.0.2.7"
    assert "GLOO_SOCKET_IFNAME" not in far


def test_ranks_without_a_front_end_start_as_it_starts_them() -> None:
    """What we call for a follower is what vLLM's own command calls, with the same words."""
    source = inspect.getsource(_get("vllm.entrypoints.cli.serve.run_headless"))
    manager = inspect.signature(_get("vllm.v1.engine.utils.CoreEngineProcManager")).parameters
    needed = {name for name, each in manager.items() if each.default is inspect.Parameter.empty}

    assert "headless=True" in source
    assert "if parallel_config.node_rank_within_dp > 0:" in source
    assert "MultiprocExecutor(vllm_config, monitor_workers=False)" in source
    assert "get_tcp_uri(host, port)" in source
    assert needed == {
        "local_engine_count",
        "start_index",
        "local_start_index",
        "vllm_config",
        "local_client",
        "handshake_address",
        "executor_class",
        "log_stats",
    }


def test_the_ranks_of_adapters_are_its_ranks() -> None:
    """Our table of LoRA ranks is vLLM's."""
    assert get_args(_get("vllm.config.lora.MaxLoRARanks")) == engine_args._LORA_RANKS


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (
            "vllm.entrypoints.launchers.api_server.app_state.init_app_state",
            ["engine_client", "state", "args", "supported_tasks"],
        ),
        (
            "vllm.entrypoints.openai.chat_completion.serving.OpenAIServingChat.create_chat_completion",
            ["request", "raw_request"],
        ),
        (
            "vllm.entrypoints.openai.completion.serving.OpenAIServingCompletion.create_completion",
            ["request", "raw_request"],
        ),
        (
            "vllm.entrypoints.openai.chat_completion.serving.OpenAIServingChat.chat_completion_stream_generator",
            ["request", "result_generator", "request_id", "model_name"],
        ),
        (
            "vllm.entrypoints.openai.completion.serving.OpenAIServingCompletion.completion_stream_generator",
            ["request", "engine_inputs", "result_generator", "request_id", "created_time", "model_name", "num_prompts"],
        ),
        (
            "vllm.entrypoints.openai.responses.serving.OpenAIServingResponses.create_responses",
            ["request", "raw_request"],
        ),
        ("vllm.entrypoints.anthropic.serving.AnthropicServingMessages.create_messages", ["request", "raw_request"]),
        ("vllm.entrypoints.anthropic.serving.AnthropicServingMessages.count_tokens", ["request", "raw_request"]),
        ("vllm.entrypoints.serve.tokenize.serving.ServingTokenization.create_tokenize", ["request", "raw_request"]),
        ("vllm.entrypoints.serve.tokenize.serving.ServingTokenization.create_detokenize", ["request", "raw_request"]),
        ("vllm.entrypoints.serve.tokenize.serving.ServingTokenization.get_tokenizer_info", []),
        ("vllm.entrypoints.openai.models.serving.OpenAIServingModels.model_name", ["lora_request"]),
        ("vllm.entrypoints.openai.models.serving.OpenAIServingModels.is_base_model", ["model_name"]),
        ("vllm.entrypoints.pooling.base.serving.PoolingBaseServing.__call__", ["request", "raw_request"]),
        ("vllm.renderers.BaseRenderer.process_for_engine", ["prompt", "arrival_time"]),
        ("vllm.renderers.BaseRenderer.validate_token_ids", ["token_ids", "parameter"]),
        ("vllm.renderers.BaseRenderer.render_completion_suffix", ["prompt", "suffix"]),
        ("vllm.renderers.BaseRenderer._tokenize_prompt", ["prompt", "params"]),
        ("vllm.renderers.BaseRenderer._wants_offsets", ["prompt", "params"]),
        ("vllm.renderers.BaseRenderer._build_tokens_prompt", ["token_ids", "prompt"]),
        ("vllm.utils.async_utils.make_async", ["func", "executor"]),
        ("vllm.utils.async_utils.merge_async_iterators", ["iterators"]),
        ("vllm.renderers.TokenizeParams.apply_pre_tokenization", ["tokenizer", "prompt"]),
        ("vllm.renderers.TokenizeParams.apply_post_tokenization", ["tokenizer", "prompt"]),
        ("vllm.v1.engine.async_llm.AsyncLLM.encode", ["prompt", "pooling_params", "request_id"]),
        ("vllm.v1.engine.async_llm.AsyncLLM.generate", ["prompt", "sampling_params", "request_id"]),
        ("vllm.v1.engine.async_llm.AsyncLLM.shutdown", ["timeout"]),
        ("vllm.v1.engine.async_llm.AsyncLLM.abort", ["request_id", "internal"]),
        (
            "vllm.v1.engine.utils.launch_core_engines",
            ["vllm_config", "executor_class", "log_stats", "addresses"],
        ),
    ],
)
def test_functions_take_what_we_give_them(function: str, names: list[str]) -> None:
    """The parameters we pass by place are there, first and in this order."""
    owner, _, method = function.rpartition(".")
    target = getattr(_get(owner), method) if owner.rpartition(".")[2][0].isupper() else _get(function)
    found = [name for name in inspect.signature(target).parameters if name != "self"]

    assert found[: len(names)] == names


def test_processes_are_made_where_we_step_in() -> None:
    """The engine core, and what spreads requests over copies, come from `get_mp_context()` of
    their modules, as `context.Process(target=, name=, kwargs=)`.
    """
    makers = ("vllm.v1.engine.utils.CoreEngineProcManager", "vllm.v1.engine.coordinator.DPCoordinator")
    sources = [inspect.getsource(_get(maker).__init__) for maker in makers]

    for source in sources:
        assert "context = get_mp_context()" in source
        assert "context.Process(" in source
        assert all(f"{word}=" in source for word in ("target", "name", "kwargs"))


def test_front_ends_join_where_we_step_in() -> None:
    """A client starts its engine core by `launch_core_engines` of its own module, unless it is told of addresses."""
    module = importlib.import_module("vllm.v1.engine.core_client")
    source = inspect.getsource(module.MPClient.__init__)
    client = inspect.signature(_get("vllm.v1.engine.async_llm.AsyncLLM").from_vllm_config).parameters
    args = {each.name for each in dataclasses.fields(_get("vllm.engine.arg_utils.AsyncEngineArgs"))}

    assert "with launch_core_engines(" in source
    assert all(f'client_addresses["{name}_address"]' in source for name in ("input", "output"))
    assert "self.stats_update_address" in source
    assert {"client_addresses", "client_count", "client_index"} <= set(client)
    assert {"_api_process_count", "_api_process_rank"} <= args
    resources = {each.name for each in dataclasses.fields(module.BackgroundResources)}
    assert {"ctx", "output_socket"} <= resources
    # What `OutputSocket` replaces.
    assert "output_socket.recv_multipart(copy=False)" in inspect.getsource(module.AsyncMPClient)


def test_a_step_counts_what_we_count() -> None:
    """A step in which no request begins, ends or is preempted changes three metrics, and vLLM has no others."""
    stats = importlib.import_module("vllm.v1.metrics.stats")
    source = inspect.getsource(stats.IterationStats)
    loggers = inspect.getsource(_get("vllm.v1.metrics.loggers.PrometheusStatLogger").record)
    counted = set(re.findall(r"iteration_stats\.(\w+)", loggers))

    assert counted <= vars(stats.IterationStats()).keys() | {"num_prompt_tokens"}
    assert counted == {
        *("num_generation_tokens", "prompt_token_stats", "num_prompt_tokens", "num_preempted_reqs"),
        *("finished_requests", "max_num_generation_tokens_iter", "n_params_iter", "time_to_first_tokens_iter"),
        *("inter_token_latencies_iter", "num_corrupted_reqs", "num_watermarked_reqs", "num_watermark_skipped_reqs"),
        "num_not_watermarked_reqs",
    }
    finished = source.partition("def update_from_finished_request")[2]
    assert all(f"self.{name} += 1" in finished for name in counted if name.endswith(("corrupted_reqs", "marked_reqs")))
    addresses = {each.name for each in dataclasses.fields(_get("vllm.v1.engine.utils.EngineZmqAddresses"))}
    assert {"inputs", "outputs"} <= addresses


def test_a_start_is_timed_and_forked_where_we_step_in() -> None:
    """
    The engine core calls these of its executor, whose class it is given by name; a model's class is looked at through
    one function, in a process of its own.
    """
    core = _get("vllm.v1.engine.core.EngineCore")
    source = inspect.getsource(core)
    executor = _get("vllm.v1.executor.abstract.Executor")
    manager = inspect.getsource(_get("vllm.v1.engine.utils.CoreEngineProcManager").__init__)

    assert '"executor_class": executor_class' in manager
    for name in ("determine_available_memory", "initialize_from_config", "compile_or_warm_up_model"):
        assert f"self.model_executor.{name}(" in source
        assert callable(getattr(executor, name))
    assert "self._init_executor()" in inspect.getsource(executor.__init__)
    assert "_run_in_subprocess(" in inspect.getsource(_get("vllm.model_executor.models.registry._LazyRegisteredModel"))


def test_the_engine_has_the_parts_we_hold() -> None:
    """What `Engine` reads of `AsyncLLM` is set by its constructor."""
    cls = _get("vllm.v1.engine.async_llm.AsyncLLM")
    source = inspect.getsource(cls.__init__) + inspect.getsource(
        _get("vllm.v1.engine.output_processor.OutputProcessor")
    )

    assert isinstance(cls.errored, property)
    assert all(
        f"self.{name}" in source for name in ("output_processor", "output_handler", "model_config", "request_states")
    )


def test_weights_are_weighed_before_they_are_packed() -> None:
    """
    Workers answer for the model they hold, and its loader calls what we step into by this name, after it has read it.
    """
    source = inspect.getsource(_get("vllm.model_executor.model_loader.base_loader.BaseModelLoader").load_model)

    assert callable(_get("vllm.v1.worker.gpu_worker.Worker").get_model)
    assert not hasattr(_get("vllm.v1.worker.gpu_worker.Worker"), "weight_bytes")
    assert 0 < source.index("self.load_weights(model") < source.index(" process_weights_after_loading(model")


def test_tokens_can_pass_by_the_output_processor() -> None:
    """The handler of outputs calls what is replaced, and the state of a request has what direct streams use."""
    engine = inspect.getsource(_get("vllm.v1.engine.async_llm.AsyncLLM")._run_output_handler)
    processor = _get("vllm.v1.engine.output_processor.OutputProcessor")
    state = inspect.getsource(_get("vllm.v1.engine.output_processor.RequestState"))
    detokenizer = _get("vllm.v1.engine.detokenizer.BaseIncrementalDetokenizer")
    calls = inspect.signature(processor.process_outputs).parameters

    assert "output_processor.process_outputs(" in engine
    assert list(calls) == [
        *("self", "engine_core_outputs", "engine_core_timestamp", "iteration_stats", "weight_version"),
    ]
    assert "outputs_queue" in inspect.getsource(_get("vllm.v1.engine.core_client.AsyncMPClient").get_output_async)
    for name in ("queue", "detokenizer", "stats", "stream_interval", "is_prefilling", "weight_version_starts"):
        assert f"self.{name}" in state
    assert "external_req_ids" in inspect.getsource(processor)
    assert callable(detokenizer.decode_next)
    assert "self.token_ids.append(" in inspect.getsource(detokenizer.update)


def test_latencies_of_a_step_can_be_observed_together() -> None:
    """vLLM's logger observes each latency in one place, and the manager passes the engine's number by name."""
    loggers = "vllm.v1.metrics.loggers"
    record = inspect.getsource(_get(f"{loggers}.PrometheusStatLogger").record)
    manager = inspect.getsource(_get(f"{loggers}.StatLoggerManager"))

    assert record.count("inter_token_latencies_iter") == 1
    assert "self.histogram_inter_token_latency[engine_idx].observe(itl)" in record
    assert "self.stat_loggers" in manager
    assert "engine_idx=engine_idx" in inspect.getsource(_get(f"{loggers}.StatLoggerManager").record)
    assert "self.logger_manager" in inspect.getsource(_get("vllm.v1.engine.async_llm.AsyncLLM").__init__)


def test_many_latencies_are_observed_as_each_would_be() -> None:
    """Sum, count and buckets are the same, also for amounts on a bound and beyond all of them."""
    amounts = [0.0, 0.01, 0.010001, 0.025, 0.3, 0.3, 7.0, 80.0]
    together, apart = CollectorRegistry(), CollectorRegistry()
    one, other = (Histogram("a", "b", ["engine"], registry=each).labels("0") for each in (together, apart))

    observe_all(one, amounts)
    for amount in amounts:
        other.observe(amount)

    found, expected = (
        {
            (sample.name, *sample.labels.items()): sample.value
            for family in registry.collect()
            for sample in family.samples
            if not sample.name.endswith("_created")
        }
        for registry in (together, apart)
    )
    assert found == pytest.approx(expected)
    assert found["a_count", ("engine", "0")] == len(amounts)


def test_an_output_has_what_we_count() -> None:
    """Tokens, those that were cached, the moments of the engine, and whether outputs repeat what came before."""
    output = inspect.signature(_get("vllm.outputs.RequestOutput").__init__).parameters
    stats = {each.name for each in dataclasses.fields(_get("vllm.v1.metrics.stats.RequestStateStats"))}

    assert {"prompt_token_ids", "outputs", "metrics", "num_cached_tokens"} <= set(output)
    assert {"queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts"} <= stats
    assert {"index", "token_ids"} <= {each.name for each in dataclasses.fields(_get("vllm.outputs.CompletionOutput"))}
    assert _get("vllm.sampling_params.RequestOutputKind").DELTA


async def test_an_answer_is_waited_for_as_we_have_it() -> None:
    """What collects an answer's outputs sets, clears and awaits `ready`, and nothing else of it."""
    collector = _get("vllm.v1.engine.output_processor.RequestOutputCollector")(
        _get("vllm.sampling_params.RequestOutputKind").DELTA, "id"
    )
    collector.ready = SingleWaiterEvent(asyncio.get_running_loop())
    waiting = asyncio.create_task(collector.get())
    await asyncio.sleep(0)
    output = _get("vllm.outputs.RequestOutput")("id", "x", [1], None, [], False)
    collector.put(output)

    assert await asyncio.wait_for(waiting, 10) is output
    assert not collector.ready.wait().done()


def test_its_metrics_are_told_by_their_names() -> None:
    """What an engine registers is known by a prefix, and is taken out again when another one starts."""
    source = inspect.getsource(_get("vllm.v1.metrics.prometheus.unregister_vllm_metrics"))

    assert '_name.startswith("vllm:")' in source


def test_pooling_has_the_parts_we_hold() -> None:
    """The serving classes of pooling models are attributes of the state, made with what our own answers are made of."""
    state = inspect.getsource(_get("vllm.entrypoints.pooling.factories.init_pooling_state"))
    renderer = inspect.getsource(_get("vllm.renderers.BaseRenderer").__init__)
    tokens = inspect.getsource(_get("vllm.renderers.TokenizeParams"))

    assert all(f"state.serving_{name} = " in state for name in ("pooling", "embedding", "scores"))
    assert "self._executor = " in renderer
    assert "prompt_token_offsets" in inspect.getsource(importlib.import_module("vllm.renderers.params"))
    assert "def get_encode_kwargs" in tokens
    for request in ("embed.protocol.EmbeddingCompletionRequest", "classify.protocol.ClassificationCompletionRequest"):
        assert callable(_get(f"vllm.entrypoints.pooling.{request}").build_tok_params)
    fields = {each.name for each in dataclasses.fields(_get("vllm.config.PoolerConfig"))}
    assert {"task", "pooling_type", "use_activation", "dimensions"} <= fields


def test_a_pooler_is_told_only_what_the_config_says(tmp_path: Path) -> None:
    """Unset keys are left to the model's own files; `engine.args` goes over ours key by key."""
    engine = EngineConfig(args={"pooler_config": {"enable_chunked_processing": True}})
    pooler = Pooler(task="embed", pooling="cls", dimensions=64)
    setup = EngineSpec(name="a", artifact=tmp_path, layout=LayoutConfig(), engine=engine, pooler=pooler)

    made = engine_arguments(setup, on_cpu=True)

    assert made["pooler_config"] == {
        "task": "embed",
        "pooling_type": "CLS",
        "dimensions": 64,
        "enable_chunked_processing": True,
    }
    assert (made["runner"], made["dtype"]) == ("pooling", "float32")
    assert engine_arguments(setup, on_cpu=False)["dtype"] == "auto"


def test_its_errors_have_the_status_and_field_we_pass_on() -> None:
    """A refused value is 400 with its field; a dead engine has the class we catch."""
    respond = _get("vllm.entrypoints.serve.create_error_response")
    error = _get("vllm.exceptions.VLLMValidationError")("no", parameter="temperature")

    assert (respond(error).error.code, respond(error).error.param) == (400, "temperature")
    assert isinstance(respond(error), _get("vllm.entrypoints.serve.engine.protocol.ErrorResponse"))
    assert issubclass(_get("vllm.v1.engine.exceptions.EngineDeadError"), Exception)
    assert _get("vllm.v1.executor.uniproc_executor.UniProcExecutor")


def test_texts_are_tokenized_by_what_we_put_in_its_place() -> None:
    """The renderer asks its own attribute each time, and its pool's `submit`, which is looked up each time too."""
    renderer = _get("vllm.renderers.BaseRenderer")
    executor = _get("vllm.renderers.base._SwappableExecutor")

    assert "self._tokenize_prompt_async(" in inspect.getsource(renderer._tokenize_singleton_prompt_async)
    assert "self._executor = _SwappableExecutor(" in inspect.getsource(renderer.__init__)
    assert "self._resources = ExitStack()" in inspect.getsource(renderer.__init__)
    assert not hasattr(executor, "__slots__")
    assert "maybe_make_thread_pool(" in inspect.getsource(_get("vllm.renderers.hf.HfRenderer").__init__)


def test_a_detokenizer_reads_only_the_prompt_of_its_request() -> None:
    """What it is made with may be a copy of the request with another prompt."""
    source = inspect.getsource(_get("vllm.v1.engine.detokenizer.FastIncrementalDetokenizer").__init__)

    assert source.count("request.prompt_token_ids") == 1
    assert "ids=request.prompt_token_ids," in source


def test_choices_are_seeded_as_its_own() -> None:
    """What `n` makes of a seed is what vLLM would make of it."""
    parent = _get("vllm.v1.engine.parallel_sampling.ParentRequest")
    source = inspect.getsource(parent._get_child_sampling_params)

    assert "child_sampling_params.seed = seed + index" in source


def test_each_attribute_that_is_replaced_is_there() -> None:
    """What `patches.py` replaces, and what is private and only read, exists under its name."""
    chat = "vllm.entrypoints.openai.chat_completion.serving.OpenAIServingChat"
    completion = "vllm.entrypoints.openai.completion.serving.OpenAIServingCompletion"
    messages = "vllm.entrypoints.anthropic.serving.AnthropicServingMessages"
    responses = "vllm.entrypoints.openai.responses.serving.OpenAIServingResponses"
    errors = ("create_streaming_error_response", "_convert_generation_error_to_streaming_response")
    names = {
        "vllm.v1.engine.utils": ("get_mp_context",),
        "vllm.v1.engine.coordinator": ("get_mp_context",),
        "vllm.v1.engine.core_client": ("launch_core_engines",),
        "vllm.model_executor.models.registry": ("_run_in_subprocess",),
        "vllm.model_executor.model_loader.base_loader": ("process_weights_after_loading",),
        "vllm.engine.arg_utils": ("NEEDS_HELP",),
        "vllm.renderers.BaseRenderer": ("_tokenize_prompt", "_tokenize_prompt_async"),
        "vllm.sampling_params.SamplingParams": ("_validate_structured_outputs",),
        "vllm.v1.structured_output.StructuredOutputManager": ("grammar_init", "_use_async_grammar_compilation"),
        chat: ("chat_completion_stream_generator", "_raise_if_error", *errors),
        completion: ("completion_stream_generator", "_raise_if_error", *errors),
        messages: ("chat_completion_stream_generator", "message_stream_converter", *errors),
        responses: ("responses_stream_generator", "enable_store", *errors),
    }

    missing = []
    for path, attributes in names.items():
        is_class = path.rpartition(".")[2][0].isupper()
        owner = _get(path) if is_class else importlib.import_module(path)
        # Attributes of instances are set by the constructors.
        source = inspect.getsource(owner) if is_class else ""
        missing += [
            f"{path}.{name}" for name in attributes if not hasattr(owner, name) and f"self.{name} " not in source
        ]

    assert not missing


def test_a_forced_call_is_held_to_its_schema_in_every_protocol() -> None:
    """Also where no tool is strict, and to an object where a tool has no parameters; a free choice stays free."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionToolsParam

    hold_forced_calls_to_their_schema()
    hold_forced_calls_to_their_schema()
    structural_tag = _get("vllm.tool_parsers.structural_tag_registry.get_model_structural_tag")
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}

    def held(function: dict[str, Any], choice: str) -> set[str]:
        tool = ChatCompletionToolsParam(type="function", function={"name": "f", **function})
        tag = structural_tag(model="hermes", tools=[tool], tool_choice=choice, reasoning=False)
        return {json.dumps(each.content.json_schema) for each in tag.format.tags} if tag else set()

    for strict in ({}, {"strict": None}, {"strict": False}, {"strict": True}):
        assert held({"parameters": schema, **strict}, "required") == {json.dumps(schema)}
    assert held({}, "required") == held({"parameters": {}}, "required") == {'{"type": "object"}'}
    assert held({"parameters": schema}, "auto") == set()
