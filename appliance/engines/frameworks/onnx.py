"""ONNX Runtime, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_errors

from appliance.config.engine import OnnxConfig
from appliance.core.errors import LoadError, RequestError
from appliance.core.suggestions import known_names
from appliance.engines.frameworks.features import Array, Features
from appliance.engines.frameworks.framework import Framework
from appliance.tensors.arrays import datatype_of, dtype_of
from appliance.tensors.tensor import TensorSpec

# Source: https://onnx.ai/onnx/intro/concepts.html#element-type
_DATATYPES: Mapping[str, str] = {
    "bool": "BOOL",
    "float16": "FP16",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
    **{f"{kind}{bits}": f"{kind.upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}

_FATAL = 4

# Probabilities of classifiers that were converted from scikit-learn: for each row a mapping from class to number.
_CLASS_MAPS = ("seq(map(int64,tensor(float)))", "seq(map(string,tensor(float)))")


class Onnx(Framework):
    """A session of ONNX Runtime."""

    input_errors = (
        *Framework.input_errors,
        runtime_errors.InvalidArgument,
        runtime_errors.Fail,
        runtime_errors.RuntimeException,
    )

    def __init__(self, config: OnnxConfig, file: Path) -> None:
        self._session = create_session(file, config.threads)
        self.inputs = [_spec(file, each) for each in self._session.get_inputs()]
        self.outputs = [
            TensorSpec(each.name, "FP32", (-1, -1)) if each.type in _CLASS_MAPS else _spec(file, each)
            for each in self._session.get_outputs()
        ]
        self._specs = {spec.name: spec for spec in self.inputs}

    def predict(self, features: Features, *, has_probabilities: bool | None = None) -> Mapping[str, Array]:  # noqa: ARG002 - it has none
        if not isinstance(features, Mapping):
            # A single tensor may have any name, as in KServe's servers.
            features = {self.inputs[0].name: features}
        for name in (*features.keys() - self._specs.keys(), *self._specs.keys() - features.keys()):
            fault = "has no input" if name in features else "needs the input"
            raise RequestError(f"The model {fault} {name!r}; {known_names('inputs', self._specs)}")
        arrays = {name: _cast(array, self._specs[name]) for name, array in features.items()}
        results = self._session.run(None, arrays)
        return {spec.name: _output(result) for spec, result in zip(self.outputs, results, strict=True)}


def create_session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    """Load a model; neither operators of other libraries nor weights outside of its directory are loaded."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that spin take the cores from the event loop.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # What it logs as errors of requests, it raises too.
    options.log_severity_level = _FATAL
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _spec(file: Path, value: Any) -> TensorSpec:  # Any: ONNX Runtime's NodeArg
    if not value.type.startswith("tensor(") or _element(value.type) not in _DATATYPES:
        raise LoadError(
            f"{file}: {value.name!r} is a {value.type}; convert the model so that all inputs and outputs are tensors "
            f"of {', '.join(_DATATYPES)}"
        )
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return TensorSpec(value.name, _DATATYPES[_element(value.type)], shape)


def _element(type_: str) -> str:
    return type_.removeprefix("tensor(").removesuffix(")")


def _cast(array: Array, spec: TensorSpec) -> Array:
    """Return the array with the input's type; numbers lose no more than precision, and a column gets its axis."""
    dtype = dtype_of(spec.datatype)
    is_text = dtype == "O"
    if is_text != (array.dtype.kind == "O") or not (is_text or np.can_cast(array.dtype, dtype, "same_kind")):
        found = datatype_of(array) or array.dtype
        raise RequestError(f"The input {spec.name!r} is {found}; the model needs {spec.datatype}")
    if array.ndim == 1 and spec.shape == (-1, 1):
        array = array.reshape(-1, 1)
    return np.ascontiguousarray(array, dtype)


def _output(result: Any) -> Array:  # Any: a tensor, or a list of mappings
    if isinstance(result, list):
        return np.array([list(row.values()) for row in result], np.float32)
    array: Array = np.asarray(result)
    return array
