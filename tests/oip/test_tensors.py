"""Tensors as bytes and as JSON: what goes in comes out, and what is wrong is told."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.errors import RequestError
from appliance.tensors.codec import LENGTH_HEADER, read_request, read_response, write_request, write_response
from appliance.tensors.datatype import DATATYPES
from appliance.tensors.tensor import InferenceRequest, InferenceResponse, Tensor

_INTEGERS = {
    f"{sign}INT{bits}": st.integers(*((0, 2**bits - 1) if sign else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)))
    for sign in ("U", "")
    for bits in (8, 16, 32, 64)
}
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "BOOL": st.booleans(),
    **_INTEGERS,
    "FP16": st.floats(width=16, allow_nan=False, allow_infinity=False),
    "FP32": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "FP64": st.floats(allow_nan=False, allow_infinity=False),
    # What has eight bits of mantissa.
    "BF16": st.integers(-128, 128).map(lambda value: value / 4),
    "BYTES": st.binary(max_size=8),
}

tensors = st.sampled_from(sorted(VALUES)).flatmap(
    lambda name: st.lists(VALUES[name], max_size=6).map(lambda values: (name, values))
)


def test_every_datatype_has_its_values_tested() -> None:
    """A new datatype is in the table above."""
    assert VALUES.keys() == DATATYPES.keys()


@given(tensors)
def test_values_round_trip_through_bytes(made: tuple[str, list[Any]]) -> None:
    """Packed and unpacked, each value is itself; the bytes are as many as the datatype says."""
    name, values = made

    tensor = Tensor.of_values("x", name, (len(values),), values)

    assert tensor.values() == values
    assert Tensor.of_raw("x", name, (len(values),), tensor.raw) == tensor


@given(st.lists(tensors, max_size=4))
def test_request_round_trips_as_binary_data(made: list[tuple[str, list[Any]]]) -> None:
    """As bytes after the JSON, every tensor comes back as it was."""
    inputs = [Tensor.of_values(f"x{i}", name, (len(each), 1), each) for i, (name, each) in enumerate(made)]
    request = InferenceRequest(inputs, id="1", parameters={"a": 1.5})

    body, headers = write_request(request)

    assert read_request(body, headers.get(LENGTH_HEADER)) == request


@given(tensors.filter(lambda made: made[0] != "BYTES"))
def test_response_round_trips_through_json(made: tuple[str, list[Any]]) -> None:
    """So it does as numbers in the JSON."""
    name, values = made
    response = InferenceResponse("m", "1", [Tensor.of_values("x", name, (len(values),), values)])

    body, headers = write_response(response)

    assert headers == {}
    assert read_response(body) == response


@given(st.floats(width=32))
def test_bfloat16_rounds_to_nearest(value: float) -> None:
    """Rounded to the nearest of those with the same exponent; what is no number stays so."""
    (rounded,) = DATATYPES["BF16"].unpack(DATATYPES["BF16"].pack([value]))

    assert isinstance(rounded, float)
    if math.isnan(value):
        assert math.isnan(rounded)
    elif abs(value) < 3e38:
        assert abs(rounded - value) <= max(abs(value) / 256, 2**-134)


TEXT = {"name": "x", "shape": [1], "datatype": "BYTES", "data": ["a"]}
NUMBER = {"name": "x", "shape": [2], "datatype": "INT8", "data": [1, 2]}
WRONG: list[tuple[str, Any, str]] = [
    ("no inputs", {}, "inputs"),
    ("no tensor", {"inputs": [3]}, "inputs"),
    ("no name", {"inputs": [{**NUMBER, "name": None}]}, "name"),
    ("two of a name", {"inputs": [NUMBER, NUMBER]}, "same name"),
    ("unknown datatype", {"inputs": [{**NUMBER, "datatype": "INT9"}]}, "INT8"),
    ("datatype in small letters", {"inputs": [{**NUMBER, "datatype": "fp32"}]}, 'did you mean "FP32"'),
    ("too few values", {"inputs": [{**NUMBER, "shape": [3]}]}, "has 3 elements, and its data has 2"),
    ("negative dimension", {"inputs": [{**NUMBER, "shape": [-1, -2]}]}, "negative"),
    ("huge dimensions", {"inputs": [{**NUMBER, "shape": [2**63, 2**63]}]}, "elements"),
    ("dimension of 65 bits", {"inputs": [{**NUMBER, "shape": [2**64]}]}, "64 bits"),
    ("many dimensions", {"inputs": [{**NUMBER, "shape": [1] * 65}]}, "65 dimensions"),
    ("fraction of a dimension", {"inputs": [{**NUMBER, "shape": [2.5]}]}, "shape"),
    ("shape is a number", {"inputs": [{**NUMBER, "shape": 2}]}, "shape"),
    ("value out of range", {"inputs": [{**NUMBER, "data": [1, 128]}]}, "outside of what INT8 holds"),
    ("float for an integer", {"inputs": [{**NUMBER, "data": [1, 2.0]}]}, "a number with a fraction"),
    ("bool for an integer", {"inputs": [{**NUMBER, "data": [1, True]}]}, "true or false"),
    ("text for an integer", {"inputs": [{**NUMBER, "data": [1, "2"]}]}, "a text"),
    ("null", {"inputs": [{**NUMBER, "data": [1, None]}]}, "null"),
    ("object", {"inputs": [{**NUMBER, "data": [{}, {}]}]}, "an object"),
    ("too large for FP32", {"inputs": [{**NUMBER, "datatype": "FP32", "data": [1, 1e39]}]}, "FP32"),
    ("number for a text", {"inputs": [{**TEXT, "data": [1]}]}, "an integer"),
    ("no data", {"inputs": [{**TEXT, "data": None}]}, "must be a list"),
    ("ragged", {"inputs": [{**NUMBER, "data": [[1], 2]}]}, "different lengths"),
    ("other nesting", {"inputs": [{**NUMBER, "data": [[1, 2]]}]}, "says [2]"),
    ("size and data", {"inputs": [{**TEXT, "parameters": {"binary_data_size": 0}}]}, "both"),
]


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "BF16"])
def test_null_is_nan(datatype: str) -> None:
    """JSON has no number for it, so that responses have null too."""
    tensor = {**NUMBER, "datatype": datatype, "data": [1, None]}
    (read,) = read_request(json.dumps({"inputs": [tensor]}).encode()).inputs
    first, second = read.values()

    assert first == 1
    assert math.isnan(float(second))


@pytest.mark.parametrize(("request_", "says"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_error_of_an_invalid_request_names_the_fault(request_: Any, says: str) -> None:
    """Each fault has its own words."""
    with pytest.raises(RequestError) as raised:
        read_request(json.dumps(request_).encode())

    assert says in str(raised.value)


def _binary(shape: list[int], datatype: str, size: Any, rest: bytes) -> tuple[bytes, str]:
    tensor = {"name": "x", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + rest, str(len(head))


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (_binary([2], "INT16", 3, b"abc"), "3 bytes and not 4"),
        (_binary([2], "INT16", 4, b"abc"), "3 bytes are left"),
        (_binary([2], "INT16", 4, b"abcde"), "1 bytes more"),
        (_binary([2], "INT16", -4, b"abcd"), "binary_data_size -4"),
        (_binary([2], "INT16", "4", b"abcd"), "binary_data_size '4'"),
        (_binary([2], "INT16", True, b"abcd"), "binary_data_size True"),
        (_binary([2**62], "INT16", 4, b"abcd"), "elements"),
        (_binary([1], "BYTES", 3, b"\x01\x00\x00"), "cut off"),
        (_binary([1], "BYTES", 6, struct.pack("<I", 2**31) + b"ab"), "reaches beyond the end"),
        (_binary([2], "BYTES", 5, struct.pack("<I", 1) + b"a"), "1 elements"),
        ((b"{}", "3"), "Inference-Header-Content-Length"),
        ((b"{}", "-1"), "Inference-Header-Content-Length"),
        ((b"{}", "٣"), "Inference-Header-Content-Length"),
        ((b"{}", "9" * 5000), "Inference-Header-Content-Length"),
    ],
)
def test_error_of_invalid_bytes_names_the_fault(made: tuple[bytes, str], says: str) -> None:
    """Nothing is read beyond its end, and nothing is allocated before it is counted."""
    with pytest.raises(RequestError) as raised:
        read_request(*made)

    assert says in str(raised.value)


@given(st.binary(max_size=80) | st.text(max_size=80).map(str.encode), st.none() | st.text(max_size=4))
def test_any_bytes_raise_only_request_errors(body: bytes, length: str | None) -> None:
    """Whatever comes is a request or an error of the call."""
    try:
        read_request(body, length)
    except RequestError as error:
        assert error.status == 400  # noqa: PT017 - most of what is made up is wrong, not all


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8,
)
nearly = st.fixed_dictionaries(
    {
        "inputs": st.lists(
            st.fixed_dictionaries(
                {
                    "name": st.just("x") | json_values,
                    "datatype": st.sampled_from(sorted(DATATYPES)) | json_values,
                    "shape": st.lists(st.integers(-2, 3) | st.integers(), max_size=3) | json_values,
                    "data": st.lists(json_values, max_size=3) | json_values,
                },
                optional={"parameters": st.fixed_dictionaries({"binary_data_size": json_values}) | json_values},
            ),
            max_size=2,
        )
    },
    optional={"id": json_values, "parameters": json_values, "outputs": json_values},
)


@given(nearly, st.binary(max_size=8))
def test_any_request_raises_only_request_errors(request_: Any, rest: bytes) -> None:
    """Nor is JSON that nearly is a request."""
    head = json.dumps(request_).encode()
    try:
        made = read_request(head + rest, str(len(head)))
    except RequestError as error:
        assert error.status == 400  # noqa: PT017 - most of what is made up is wrong, not all
    else:
        for tensor in made.inputs:
            assert len(tensor.values()) == math.prod(tensor.shape)
