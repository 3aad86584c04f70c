"""Every attribute of vLLM that we replace, each in one function with its reason.

`tests/engines/test_vllm_seam.py` fails when a new vLLM changes one of them, and so do tests/serving/test_streams.py for
streams, tests/engines/test_grammar_check.py for grammars, and tests/config/test_json_schema.py for help texts. The
first also guards the private attributes that are only read, where they are needed: those of `BaseRenderer`,
`SamplingParams._validate_structured_outputs`, `OpenAIServing._raise_if_error`, and all of `RequestState` that
`direct_stream.py` reads; tests/serving/test_direct_stream.py compares that with vLLM's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from contextvars import ContextVar
from copy import copy
from functools import partial, wraps
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from appliance.core.system import usable_cores
from appliance.engines.vllm.direct_stream import StepProcessor, current_sender
from appliance.engines.vllm.fill_in_middle import fill_in_middle
from appliance.engines.vllm.metrics import has_tokens_only, observe_all
from appliance.engines.vllm.output_socket import OutputSocket
from appliance.engines.vllm.sse import after_first, encode_events, is_plain, write_chat, write_completion
from appliance.engines.vllm.tokenization import LONG_TEXT, FairExecutor, LongTexts, PlainTokenizer, cut_long_text
from appliance.limits.queue import current_slots

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.renderers import TokenizeParams
    from vllm.renderers.base import BaseRenderer
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import RequestOutputCollector
    from vllm.v1.structured_output import StructuredOutputManager

    from appliance.engines.vllm.fork_server import ForkServer
    from appliance.engines.vllm.multi_frontend import FrontendRendezvous

# Tokens of a prompt that the detokenizer reads.
_PROMPT_END_TOKENS = 512

client_model: ContextVar[str | None] = ContextVar("client_model", default=None)
"""The client's name of the model in the current request."""


@contextlib.contextmanager
def fork_from(server: ForkServer) -> Iterator[None]:
    """Fork the engine core, and the process that inspects the model's class, from `server`.

    vLLM forks, which is unsafe in a process with threads, or starts new interpreters, which import everything again.
    """
    from vllm.model_executor.models import registry
    from vllm.v1.engine import utils

    context, inspect = replaced(utils, "get_mp_context", lambda: server), server.compute
    with context, replaced(registry, "_run_in_subprocess", inspect):
        yield


@contextlib.contextmanager
def spawn_coordinator_as_child() -> Iterator[None]:
    """Set up the process that spreads requests over copies of a model as our child, so that it ends with us.

    vLLM loads no plugins in that process, so nothing of ours would run there.
    """
    from vllm.v1.engine import coordinator

    from appliance.engines.vllm.fork_server import SpawnContext

    original = coordinator.get_mp_context
    with replaced(coordinator, "get_mp_context", lambda: SpawnContext(original())):
        yield


@contextlib.contextmanager
def announce_front_ends(rendezvous: FrontendRendezvous) -> Iterator[None]:
    """Give the engine core that starts here the addresses of the other front ends.

    vLLM does that only for a parent that starts an engine and serves nobody, which would be one more process.
    """
    from vllm.v1.engine import core_client

    original = core_client.launch_core_engines

    def launch_core_engines(config: Any, executor: Any, log_stats: bool, addresses: Any) -> Any:  # Any: vLLM's types
        for number in range(1, rendezvous.count):
            requests, responses = rendezvous.addresses(number)
            addresses.inputs.append(requests)
            addresses.outputs.append(responses)
        return original(config, executor, log_stats, addresses)

    with replaced(core_client, "launch_core_engines", launch_core_engines):
        yield


def set_front_end_number(arguments: AsyncEngineArgs, count: int, number: int) -> None:
    """Tell vLLM which of several front ends this is; it has no public argument for that."""
    arguments._api_process_count, arguments._api_process_rank = count, number


def enable_help_texts() -> None:
    """Have vLLM read the help texts of its options, which it does only if they will be printed."""
    from vllm.engine import arg_utils

    arg_utils.NEEDS_HELP = True
    # An options parser that was made before has left descriptions without texts.
    arg_utils._compute_kwargs.cache_clear()


def record_weight_bytes() -> None:
    """Record the size of a model's weights in the workers, before those of a CPU are packed and leave empty tensors."""
    from vllm.model_executor.model_loader import base_loader

    original = base_loader.process_weights_after_loading

    @wraps(original)
    def process_weights_after_loading(model: Any, *args: Any, **kwargs: Any) -> None:  # Any: vLLM has no types for us
        model.weight_bytes = sum(each.nbytes for each in model.parameters())
        original(model, *args, **kwargs)

    base_loader.process_weights_after_loading = process_weights_after_loading


def tokenize_fairly(renderer: BaseRenderer[Any], front_ends: int) -> None:
    """Let requests take turns, long texts on threads of their own, and cut texts that are far too long.

    Several front ends share the cores.
    """
    from vllm.utils.async_utils import make_async

    pool, original = renderer._executor, renderer._tokenize_prompt
    pool.submit = FairExecutor(pool.submit, current_slots).submit
    long_texts, plain = LongTexts(usable_cores() // front_ends, current_slots), PlainTokenizer.of(renderer.tokenizer)
    renderer._resources.callback(long_texts.close)

    def tokenize(prompt: Any, params: TokenizeParams) -> Any:  # Any: vLLM's prompts, here and below
        tokenizer = None if renderer._wants_offsets(prompt, params) else plain
        text = cut_long_text(tokenizer or renderer.get_tokenizer(), prompt["prompt"], params)
        if tokenizer is None:
            return original({**prompt, "prompt": text}, params)
        ids = tokenizer(text, **params.get_encode_kwargs())["input_ids"]
        return renderer._build_tokens_prompt(ids, {**prompt, "prompt": text})

    tokenize_short: Callable[..., Awaitable[Any]] = make_async(tokenize, executor=pool)

    def tokenize_async(prompt: Any, params: TokenizeParams) -> Awaitable[Any]:
        if (size := len(prompt["prompt"])) < LONG_TEXT:
            return tokenize_short(prompt, params)
        return asyncio.wrap_future(long_texts.submit(size, tokenize, prompt, params))

    renderer._tokenize_prompt_async = tokenize_async


def render_suffixes(renderer: BaseRenderer[Any]) -> None:
    """Let completions have a `suffix` for all models with the tokens for it; vLLM knows those of DeepSeek-V4 alone."""
    from vllm.renderers.base import BaseRenderer

    tokenizer = renderer.tokenizer
    if tokenizer is not None and type(renderer).render_completion_suffix is BaseRenderer.render_completion_suffix:
        renderer.render_completion_suffix = partial(fill_in_middle, tokenizer.get_added_vocab())


def detokenize_without_the_prompt() -> None:
    """Begin to detokenize at the end of the prompt; vLLM decodes all of it at the first token, in the event loop.

    The end has whole words, so the first token of a response gets its space as after the whole prompt.
    """
    from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

    original = FastIncrementalDetokenizer.__init__
    if hasattr(original, "__wrapped__"):
        return

    @wraps(original)
    def create(self: Any, tokenizer: Any, request: Any) -> None:  # Any: vLLM's types
        if len(request.prompt_token_ids or ()) > _PROMPT_END_TOKENS:
            request = copy(request)
            request.prompt_token_ids = request.prompt_token_ids[-_PROMPT_END_TOKENS:]
        original(self, tokenizer, request)

    FastIncrementalDetokenizer.__init__ = create


class SingleWaiterEvent:
    """An `asyncio.Event` for one waiter: its queue of waiters would double the cost of waiting for a token."""

    __slots__ = ("_is_set", "_loop", "_waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        self._is_set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def clear(self) -> None:
        self._is_set = False

    @property
    def has_waiter(self) -> bool:
        """Whether the waiter waits, and nothing has woken it up yet."""
        return self._waiter is not None and not self._waiter.done()

    def wait(self) -> asyncio.Future[None]:
        """Return a future that is done once the event is set."""
        self._waiter = self._loop.create_future()
        if self._is_set:
            self._waiter.set_result(None)
        return self._waiter


def use_single_waiter_event(collector: RequestOutputCollector) -> None:
    """Replace the event of a collector that nothing waits for yet; it is awaited for each token."""
    collector.ready = SingleWaiterEvent(asyncio.get_running_loop())


def receive_directly(llm: AsyncLLM) -> None:
    """Read the socket of the engine's outputs without pyzmq's futures; see `output_socket`."""
    OutputSocket(llm.engine_core.resources.output_socket)


def process_directly(llm: AsyncLLM) -> None:
    """Let the tokens of plain streams pass by vLLM's output processor; see `direct_stream`."""
    from vllm.v1.engine.output_processor import RequestOutputCollector

    # Outputs may come before a collector is known to its stream, and most never have one.
    RequestOutputCollector.direct = None
    llm.output_processor.process_outputs = StepProcessor(llm).process_outputs


def observe_latencies_at_once(llm: AsyncLLM) -> None:
    """Have vLLM observe the latencies of a step together, and nothing that a step of tokens alone does not have.

    It would observe each latency alone, and add zero to a dozen counters at each step.
    """
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    def record_at_once(logger: Any) -> Callable[..., None]:  # Any: vLLM's logger, and below what it takes
        original = logger.record

        def record(scheduler_stats: Any, iteration_stats: Any, *args: Any, engine_idx: int = 0, **kwargs: Any) -> None:
            if iteration_stats is not None and iteration_stats.inter_token_latencies_iter:
                histogram = logger.histogram_inter_token_latency[engine_idx]
                observe_all(histogram, iteration_stats.inter_token_latencies_iter)
                if has_tokens_only(iteration_stats):
                    tokens = iteration_stats.num_generation_tokens
                    logger.counter_generation_tokens[engine_idx].inc(tokens)
                    logger.histogram_iteration_tokens[engine_idx].observe(tokens)
                    iteration_stats = None
                else:
                    # Other loggers get the same object.
                    iteration_stats = copy(iteration_stats)
                    iteration_stats.inter_token_latencies_iter = []
            original(scheduler_stats, iteration_stats, *args, engine_idx=engine_idx, **kwargs)

        return record

    for logger in llm.logger_manager.stat_loggers if llm.logger_manager is not None else ():
        if isinstance(logger, PrometheusStatLogger):
            logger.record = record_at_once(logger)


def write_plain_streams(chat: Any, completion: Any) -> None:  # Any: vLLM's serving classes
    """Write plain streams with our writers, all others with vLLM's; all of them as bytes, and with raised errors."""
    vllm_chat, vllm_completion = chat.chat_completion_stream_generator, completion.completion_stream_generator

    # Any: what vLLM passes on, here and below.
    def chat_events(request: Any, outputs: Any, request_id: str, model: str, *args: Any, **kw: Any) -> Any:
        if chat.parser_cls is None and is_plain(chat, request) and not request.return_prompt_text:
            return write_chat(chat, request, outputs, request_id, int(time.time()), model, current_sender())
        return encode_events(outputs, lambda rest: vllm_chat(request, rest, request_id, model, *args, **kw))

    def completion_events(
        request: Any, inputs: Any, outputs: Any, request_id: str, created: int, *args: Any, num_prompts: int, **kw: Any
    ) -> Any:
        if num_prompts == 1 and is_plain(completion, request):
            (model,) = args
            return write_completion(completion, request, outputs, request_id, created, model, current_sender())
        others = {"num_prompts": num_prompts, **kw}
        return encode_events(
            outputs, lambda rest: vllm_completion(request, inputs, rest, request_id, created, *args, **others)
        )

    chat.chat_completion_stream_generator = chat_events
    completion.completion_stream_generator = completion_events
    for each in (chat, completion):
        _raise_stream_errors(each)


def use_client_names(models: OpenAIServingModels) -> None:
    """Take every name but a LoRA adapter's as one of the model's, and repeat the client's name in responses.

    vLLM knows the names that it was started with, and repeats the first of them. Here a request is for this model
    already when it comes, and the config may give the model another alias at any time.
    """
    original = models.model_name
    models.is_base_model = lambda name: name not in models.lora_requests
    models.model_name = lambda lora_request=None: client_model.get() or original(lora_request)


def raise_message_errors(messages: Any) -> None:  # Any: vLLM's serving class
    """Raise the errors of Anthropic's streams, and begin with the engine; vLLM makes them events without a status."""
    write, convert = messages.chat_completion_stream_generator, messages.message_stream_converter

    def chat_events(request: Any, outputs: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[str]:
        return after_first(outputs, lambda rest: write(request, rest, *args, **kwargs))

    async def message_events(chat_stream: AsyncGenerator[str]) -> AsyncGenerator[str]:
        errors: list[Exception] = []

        async def record_errors() -> AsyncGenerator[str]:
            async with aclosing(chat_stream):
                try:
                    async for event in chat_stream:
                        yield event
                except Exception as error:
                    errors.append(error)
                    raise

        async with aclosing(convert(record_errors())) as events:
            async for event in events:
                if errors:
                    raise errors[0]
                yield event

    messages.chat_completion_stream_generator, messages.message_stream_converter = chat_events, message_events
    _raise_stream_errors(messages)


def raise_response_errors(responses: Any) -> None:  # Any: vLLM's serving class
    """Raise the errors of streams of the Responses API, begin them with the engine, and store nothing in vLLM.

    Its store has no owners, no limit and no end; a variable of the environment turns it on.
    """
    responses.enable_store = False
    write = responses.responses_stream_generator

    def events(request: Any, params: Any, outputs: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any]:
        return after_first(outputs, lambda rest: write(request, params, rest, *args, **kwargs))

    responses.responses_stream_generator = events
    _raise_stream_errors(responses)


def _raise_stream_errors(serving: Any) -> None:  # Any: one of vLLM's serving classes
    """Raise the error that ends a stream; vLLM would write an event of its own shape and end the stream well."""

    def reraise(error: str | Exception, *_args: Any, **_kwargs: Any) -> str:
        raise error if isinstance(error, Exception) else RuntimeError(error)

    serving.create_streaming_error_response = reraise
    serving._convert_generation_error_to_streaming_response = reraise


def hold_forced_calls_to_their_schema() -> None:
    """Hold the arguments of a call that a request forces to the tool's parameters, and to an object at least.

    vLLM constrains the arguments of strict tools alone, and a small model then writes any JSON value.
    """
    from vllm.tool_parsers import structural_tag_registry as registry
    from vllm.tool_parsers.tool_strict_level import ToolStrictLevel

    original = registry.resolve_tool_strictness
    if hasattr(original, "__wrapped__"):
        return

    @wraps(original)
    def resolve_tool_strictness(tools: Any, tool_choice: Any, strict_level: Any) -> Any:  # Any: vLLM's types
        if tool_choice not in (None, "auto", "none"):
            tools, strict_level = [_with_object_schema(tool) for tool in tools], ToolStrictLevel.PARAMETER
        return original(tools, tool_choice, strict_level)

    registry.resolve_tool_strictness = resolve_tool_strictness


def _with_object_schema(tool: Any) -> Any:  # Any: vLLM's tools of chats and of the Responses API
    function = getattr(tool, "function", tool)
    if not hasattr(function, "parameters"):
        return tool
    function = function.model_copy(update={"parameters": {"type": "object", **(function.parameters or {})}})
    return tool.model_copy(update={"function": function}) if hasattr(tool, "function") else function


def load_grammar_backend(manager: StructuredOutputManager, name: str) -> Any:  # Any: vLLM's backends
    """Return the backend `name`, as vLLM makes it for the first request that needs it."""
    from vllm.sampling_params import StructuredOutputsParams
    from vllm.v1.structured_output.request import StructuredOutputRequest

    params = StructuredOutputsParams(json_object=True)
    params._backend = name
    request = SimpleNamespace(
        structured_output_request=StructuredOutputRequest(params=params),
        sampling_params=SimpleNamespace(structured_outputs=params, all_stop_token_ids=None),
        request_id="first",
    )
    manager._use_async_grammar_compilation = False
    manager.backend = None
    manager.grammar_init(request)
    backend: Any = manager.backend
    if name == "xgrammar":
        import xgrammar

        # One thread: the cores belong to the engine.
        tokenizer = request.structured_output_request.grammar.ctx.tokenizer_info
        backend.compiler = xgrammar.GrammarCompiler(tokenizer, max_threads=1, cache_enabled=False)
    return backend


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: object) -> Iterator[None]:  # Any: a module or a class
    """Give a name of a module another value in the block."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
