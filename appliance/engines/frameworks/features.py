"""Features: the rows of a request as arrays, and predictions as the rows of a response.

Source of the shapes in version 1: the servers of KServe for these frameworks, and for models with several inputs or
outputs the REST API of TensorFlow Serving (https://www.tensorflow.org/tfx/serving/api_rest).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import numpy as np

from appliance.core.errors import RequestError
from appliance.core.openai_types import Json
from appliance.tensors.arrays import to_array
from appliance.tensors.tensor import InferenceRequest, Tensor

Array = np.ndarray[Any, Any]

Features = Array | Mapping[str, Array]
"""One array of all rows, or an array for each column or input by its name."""

_DATA_FRAME = "pd"
"""The parameter `content_type` with which KServe's clients send each column as a tensor."""


def of_tensors(request: InferenceRequest) -> Features:
    """Return the features of an inference request: of a single tensor its array, whatever its name."""
    if not request.inputs:
        raise RequestError("There are no inputs; the model needs one or more", param="inputs")
    arrays = {tensor.name: _array(tensor) for tensor in request.inputs}
    if len(arrays) == 1 and request.parameters.get("content_type") != _DATA_FRAME:
        return next(iter(arrays.values()))
    return arrays


def of_json(payload: Json) -> Features:
    """Return the features of a prediction: `instances` or `inputs` with rows, or `inputs` with an object of columns."""
    key = "inputs" if "inputs" in payload else "instances"
    rows = payload.get(key)
    if key == "inputs" and isinstance(rows, dict) and rows:
        return {name: _of_values(values, name) for name, values in rows.items()}
    if not isinstance(rows, list) or not rows:
        raise RequestError(
            'The body has no rows; it must be {"instances": [...]} with a row or more', param="instances"
        )
    if all(isinstance(row, list) and row and isinstance(row[0], dict) for row in rows):
        rows = list(chain.from_iterable(rows))
    if isinstance(rows[0], dict):
        return _of_objects(rows, key)
    return _of_values(rows, key)


def predictions(outputs: Mapping[str, Array]) -> list[Any]:  # Any: JSON values
    """Return a prediction for each row: that of the only output, or an object of all outputs."""
    rows = [output.tolist() if output.ndim else [output.item()] for output in outputs.values()]
    if len(rows) == 1:
        return list(rows[0])
    if len(set(map(len, rows))) > 1:
        raise RequestError("The outputs of this model have no common rows; use version 2 of the protocol")
    return [dict(zip(outputs, row, strict=True)) for row in zip(*rows, strict=True)]


def columns(features: Features) -> Features:
    """Return named features as columns with a value for each row."""
    if not isinstance(features, Mapping):
        return features
    flat = {name: array.reshape(-1) for name, array in features.items()}
    if len({len(column) for column in flat.values()}) > 1:
        sizes = ", ".join(f"{name} {len(column)}" for name, column in flat.items())
        raise RequestError(f"The columns have different numbers of rows: {sizes}")
    return flat


def ordered(features: Mapping[str, Array], names: Sequence[str]) -> Mapping[str, Array]:
    """Return the columns that a model was trained with, in its order.

    Raises:
        RequestError: a column is missing, or unknown.
    """
    missing = [name for name in names if name not in features]
    unknown = [name for name in features if name not in names]
    if missing or unknown:
        faults = [f"has no {', '.join(missing)}"] if missing else []
        faults += [f"has {', '.join(unknown)}"] if unknown else []
        raise RequestError(f"The request {' and '.join(faults)}; the columns of the model are {', '.join(names)}")
    return {name: features[name] for name in names}


def matrix(features: Features, names: Sequence[str] = ()) -> Array:
    """Return features as one array of numbers; columns in the order of `names`, if there are any."""
    found = columns(features)
    if not isinstance(found, Mapping):
        return found
    return np.column_stack(list((ordered(found, names) if names else found).values()))


def require_columns(rows: Array, count: int, names: Sequence[str] = ()) -> None:
    """Check that rows have as many columns as the model.

    Raises:
        RequestError: they do not.
    """
    if rows.ndim != 2 or rows.shape[1] != count:
        named = f": {', '.join(names)}" if names else ""
        raise RequestError(f"The rows are of shape {list(rows.shape)}; the model needs rows of {count} columns{named}")


def _array(tensor: Tensor) -> Array:
    array = to_array(tensor)
    if tensor.datatype != "BYTES":
        return array
    texts: Array = np.empty(len(array.ravel()), np.object_)
    texts[:] = tensor.texts()
    return texts.reshape(array.shape)


def _of_objects(rows: Sequence[Any], key: str) -> Mapping[str, Array]:  # Any: JSON values
    names = list(rows[0])
    if not names:
        raise RequestError(f"{key}[0] is an empty object; it must have the columns of a row", param=key)
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or row.keys() != rows[0].keys():
            raise RequestError(f"{key}[{number}] has not the keys of the first row: {', '.join(names)}", param=key)
    # A column of a data frame as JSON is an object of its values by the row's label.
    values = {name: [list(v.values()) if isinstance(v := row[name], dict) else v for row in rows] for name in names}
    return {name: _of_values(column, name) for name, column in values.items()}


def _of_values(values: Any, name: str) -> Array:  # Any: JSON values
    """Return lists as an array; null is a missing number, and texts beside numbers stay texts."""
    try:
        array: Array = np.array(values if isinstance(values, list) else [values])
        if array.dtype.kind == "U":
            return np.array(values, np.object_)
    except (ValueError, OverflowError) as error:
        raise RequestError(f"{name}: its rows have different lengths; they must be alike", param=name) from error
    if array.dtype.kind == "O":
        with suppress(TypeError, ValueError):
            return array.astype(np.float64)
    return array
