"""A server whose engine core is another process, there already.

``python -m bench.attached appliance INPUT OUTPUT 1 serve FILE`` is ours, ``python -m bench.attached vllm INPUT OUTPUT 1
--model FOLDER`` is vLLM's own; the rest of the words are theirs, the two addresses are those of `fake_core.py`, and the
number is that of front ends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from appliance.core.child_process import end_with_parent
from bench.fake_core import client_addresses


def _addresses(sending: str, receiving: str, number: int) -> dict[str, str]:
    requests, outputs = client_addresses(sending, receiving, number)
    return {"input_address": requests, "output_address": outputs}


def appliance(sending: str, receiving: str, count: int, words: Sequence[str]) -> None:
    """This checkout's server, as its command starts it; the file says how many front ends it has."""
    from appliance.cli.main import main
    from appliance.engines.vllm.engine import import_vllm

    # Before anything else of vLLM, as a server does.
    import_vllm()
    from vllm.v1.engine.async_llm import AsyncLLM

    original = AsyncLLM.from_vllm_config.__func__

    def start(cls: Any, /, *args: Any, client_index: int = 0, **kwargs: Any) -> Any:  # Any: vLLM has no types for us
        kwargs["client_addresses"] = _addresses(sending, receiving, client_index)
        return original(cls, *args, **{**kwargs, "client_count": count, "client_index": client_index})

    AsyncLLM.from_vllm_config = classmethod(start)
    sys.argv = ["appliance", *words]
    main()


def vllm(sending: str, receiving: str, count: int, words: Sequence[str]) -> None:
    """vLLM's server: as many processes that share an engine, and a socket."""
    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server_worker, setup_server
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(list(words))
    validate_parsed_serve_args(arguments)
    address, listening = setup_server(arguments, reuse_port=False)
    number, parent = 0, os.getpid()
    # Nothing has started a thread yet.
    for other in range(1, count):
        if not os.fork():
            end_with_parent(parent)
            number = other
            break
    config = {**_addresses(sending, receiving, number), "client_count": count, "client_index": number}
    uvloop.run(run_server_worker(address, listening, arguments, client_config=config))


if __name__ == "__main__":
    name, sending, receiving, count, *others = sys.argv[1:]
    {"appliance": appliance, "vllm": vllm}[name](sending, receiving, int(count), others)
