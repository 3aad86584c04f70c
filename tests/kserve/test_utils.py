"""KServe's functions and errors."""

from __future__ import annotations

import logging as python_logging
from pathlib import Path

import pandas as pd
import pytest

from appliance.core.errors import ApplianceError
from appliance.kserve import InferInput, InferRequest, InferResponse, errors, logging, utils
from appliance.kserve.utils.utils import get_predict_input, get_predict_response, is_v1, is_v2


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (errors.InvalidInput("bad"), 400, "bad"),
        (errors.InferenceError("bad", "E7"), 500, "[E7] bad"),
        (errors.ModelNotFound("m"), 404, "Model with name m does not exist."),
        (errors.ModelNotReady("m", "Wait."), 503, "Model with name m is not ready. Wait."),
        (errors.UnsupportedProtocol("v9"), 501, "Unsupported protocol v9."),
        (errors.ServerNotReady(), 503, "Server is not ready."),
        (errors.ServerNotLive(), 503, "Server is not live."),
    ],
)
def test_errors_have_their_status(error: ApplianceError, status: int, text: str) -> None:
    """And KServe's text."""
    assert (error.status, str(error)) == (status, text)


def test_errors_are_caught_as_pythons_own() -> None:
    """As in KServe."""
    assert isinstance(errors.InvalidInput("bad"), ValueError)
    assert isinstance(errors.InferenceError("bad"), RuntimeError)


def test_a_frame_becomes_predictions_or_outputs() -> None:
    """A row is an object in version 1, a column an output in version 2."""
    frame = pd.DataFrame({"n": [1, 2], "t": ["a", "b"]})
    request = InferRequest("m", [InferInput("x", [1], "FP32", [1.0])])
    second = get_predict_response(request, frame, "m")

    assert isinstance(second, InferResponse)
    assert get_predict_response({}, frame, "m") == {"predictions": [{"n": 1, "t": "a"}, {"n": 2, "t": "b"}]}
    assert [(each.name, each.datatype, each.as_numpy().tolist()) for each in second.outputs] == [
        ("n", "INT64", [1, 2]),
        ("t", "BYTES", ["a", "b"]),
    ]


@pytest.mark.parametrize("payload", [{}, {"instances": 7}, 7, InferRequest("m", [])])
def test_input_that_is_missing_is_invalid(payload: object) -> None:
    """The client's fault."""
    with pytest.raises(errors.InvalidInput):
        get_predict_input(payload)  # type: ignore[arg-type]  # some are none


def test_truth_values_are_read() -> None:
    """In any case."""
    assert [utils.strtobool(each) for each in ("Yes", "0")] == [True, False]
    with pytest.raises(ValueError, match="invalid truth value 'maybe'"):
        utils.strtobool("maybe")


def test_protocols_are_known_by_value() -> None:
    """As flags have them."""
    assert (is_v1("v1"), is_v2("v2"), is_v1("grpc-v2")) == (True, True, False)


def test_a_config_of_pythons_logging_is_applied(tmp_path: Path) -> None:
    """From YAML too."""
    file = tmp_path / "log.yaml"
    file.write_text("version: 1\ndisable_existing_loggers: false\nloggers: {kserve: {level: ERROR}}\n")
    logging.configure_logging(str(file))
    level = logging.logger.level
    logging.configure_logging()

    assert (level, logging.logger.level) == (python_logging.ERROR, python_logging.INFO)
