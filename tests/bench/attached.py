"""A server whose engine core is another process, there already.

``python -m bench.attached appliance INPUT OUTPUT serve FILE`` is ours, ``python -m bench.attached vllm INPUT OUTPUT
--model FOLDER`` is vLLM's own; the rest of the words are theirs, and the two addresses are those of `fake_core.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial


def appliance(addresses: dict[str, str], words: Sequence[str]) -> None:
    """This checkout's server, as its command starts it."""
    from vllm.v1.engine.async_llm import AsyncLLM

    from appliance.cli.main import main

    start = partial(AsyncLLM.from_vllm_config.__func__, client_addresses=addresses)
    AsyncLLM.from_vllm_config = classmethod(start)
    sys.argv = ["appliance", *words]
    main()


def vllm(addresses: dict[str, str], words: Sequence[str]) -> None:
    """vLLM's server, as one of several that share an engine."""
    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server_worker, setup_server
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(list(words))
    validate_parsed_serve_args(arguments)
    address, listening = setup_server(arguments, reuse_port=False)
    uvloop.run(run_server_worker(address, listening, arguments, client_config=addresses))


if __name__ == "__main__":
    name, sending, receiving, *others = sys.argv[1:]
    {"appliance": appliance, "vllm": vllm}[name]({"input_address": sending, "output_address": receiving}, others)
