"""What KServe's own clients send, row by row, for their own environment.

``python kserve_client.py HTTP_PORT GRPC_PORT MODEL`` asks a model that doubles numbers and raises texts, and prints one
JSON object: for each row "ok", or what went wrong.
"""

from __future__ import annotations

import asyncio

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from rows import GRPC, HTTP, MODEL, row, show

NUMBERS = np.array([[1.5, -2.0], [0.25, 8.0]], dtype=np.float32)


def _is(array, expected) -> None:
    assert array is not None, "no output"
    assert np.array_equal(array, expected), array


def _request(binary: bool) -> InferRequest:
    tensor = InferInput("in", [2, 2], "FP32")
    tensor.set_data_from_numpy(NUMBERS, binary_data=binary)
    return InferRequest(model_name=MODEL, infer_inputs=[tensor], request_id="7")


async def _kserve_rest(binary: bool) -> None:
    url = f"http://127.0.0.1:{HTTP}"
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=30))
    assert await client.is_server_ready(url)
    assert await client.is_server_live(url)
    assert await client.is_model_ready(url, MODEL)
    _is((await client.infer(url, _request(binary), model_name=MODEL)).outputs[0].as_numpy(), NUMBERS * 2)
    await client.close()


@row
def kserve_rest_json() -> None:
    asyncio.run(_kserve_rest(binary=False))


@row
def kserve_rest_binary() -> None:
    asyncio.run(_kserve_rest(binary=True))


@row
def kserve_rest_v1() -> None:
    async def ask() -> None:
        url = f"http://127.0.0.1:{HTTP}"
        client = InferenceRESTClient(RESTConfig(protocol="v1", timeout=30))
        assert await client.is_model_ready(url, MODEL)
        answer = await client.infer(url, {"instances": [[1, 2], [3, 4]]}, model_name=MODEL)
        assert answer == {"predictions": [3, 7]}, answer
        await client.close()

    asyncio.run(ask())


@row
def kserve_grpc() -> None:
    async def ask() -> None:
        client = InferenceGRPCClient(f"127.0.0.1:{GRPC}", timeout=30)
        assert await client.is_server_ready()
        assert await client.is_server_live()
        assert await client.is_model_ready(MODEL)
        for binary in (False, True):
            _is((await client.infer(_request(binary))).outputs[0].as_numpy(), NUMBERS * 2)
        await client.close()

    asyncio.run(ask())


show()
