"""KServe's loggers; the server writes their messages to its own log."""

from __future__ import annotations

import json
import logging
import logging.config
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from appliance.kserve.constants.constants import KSERVE_LOGLEVEL

KSERVE_LOGGER_NAME = "kserve"
KSERVE_TRACE_LOGGER_NAME = "kserve.trace"

logger = logging.getLogger(KSERVE_LOGGER_NAME)
trace_logger = logging.getLogger(KSERVE_TRACE_LOGGER_NAME)


def configure_logging(log_config: dict[str, Any] | str | None = None) -> None:  # Any: what `logging.config` takes
    """Apply a config of Python's `logging`: a dict, a JSON or YAML file, or a file of `logging.config.fileConfig`.

    None sets the level of KServe's loggers from the variable `KSERVE_LOGLEVEL`.
    """
    if log_config is None:
        logger.setLevel(KSERVE_LOGLEVEL)
    elif isinstance(log_config, dict):
        logging.config.dictConfig(log_config)
    elif log_config.endswith(".json"):
        logging.config.dictConfig(json.loads(Path(log_config).read_text()))
    elif log_config.endswith((".yaml", ".yml")):
        logging.config.dictConfig(YAML(typ="safe").load(Path(log_config)))
    else:
        logging.config.fileConfig(log_config, disable_existing_loggers=False)
