"""Imported by the fork server before it forks, so that no fork has to import vLLM."""

from appliance.core import logging_setup
from appliance.core.child_process import end_with_parent

# First: the imports take seconds in which the parent may die, and vLLM logs.
end_with_parent()
logging_setup.join()

from vllm.platforms import current_platform  # noqa: E402
from vllm.v1.engine import core  # noqa: E402, F401

from appliance.engines.vllm import fork_server, worker_extension  # noqa: E402, F401

if current_platform.is_cpu():
    from vllm.v1.worker import cpu_worker  # noqa: F401
else:
    from vllm.v1.worker import gpu_worker  # noqa: F401
