"""
What vLLM's own code makes of a layout in a Ray cluster of two machines, whose GPUs are made up, as JSON; a program.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from appliance.config.engine import EngineConfig
from appliance.config.layout import LayoutConfig
from appliance.engines.vllm.engine_args import EngineSpec, engine_arguments
from appliance.engines.vllm.env import layout_environment


def main() -> None:
    """
    The arguments are those of the model in the directory of the first argument; its network has the loopback alone.
    """
    layout = LayoutConfig(tensor_parallel=2, pipeline_parallel=2, executor="ray")
    os.environ.update(layout_environment(layout))
    setup = EngineSpec(
        "tiny", Path(sys.argv[1]), layout, EngineConfig(max_model_len=256, args={"load_format": "dummy"})
    )
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.executor import Executor
    from vllm.v1.executor.ray_utils import get_bundles_sorted_by_node, initialize_ray_cluster

    arguments = AsyncEngineArgs(**engine_arguments(setup, on_cpu=True))
    config = arguments.create_engine_config(UsageContext.OPENAI_API_SERVER)
    # The CPU's platform has no name for its devices in Ray; this is a GPU's.
    type(current_platform).ray_device_key = "GPU"
    shown: dict[str, Any] = {"executor": Executor.get_class(config).__name__}
    try:
        initialize_ray_cluster(config.parallel_config, require_gpu_on_driver=False)
    except ConnectionError:
        shown["without"] = "refused"
    _start("--head", "--port=6379", "--include-dashboard=false")
    _start("--address=127.0.0.1:6379")
    initialize_ray_cluster(config.parallel_config, require_gpu_on_driver=False)
    group = config.parallel_config.placement_group
    shown["bundles"] = group.bundle_specs
    shown["machines"] = [node for _, node, _ in get_bundles_sorted_by_node(group)]
    print(json.dumps(shown))


def _start(*words: str) -> None:
    own = ["--num-gpus=2", "--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats"]
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "start", *words, *own], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
