"""
A language model as tritonclient's users ask it: ``python triton_text.py HTTP_PORT GRPC_PORT MODEL PROMPT`` prints the
text that each way gives, as one JSON object.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import tritonclient.grpc
import tritonclient.http

HTTP, GRPC, MODEL, PROMPT = sys.argv[1:]


def _asked(client, kind) -> str:
    prompt = kind.InferInput("text_input", [1], "BYTES")
    prompt.set_data_from_numpy(np.array([PROMPT.encode()], dtype=object))
    tokens = kind.InferInput("max_tokens", [1], "INT32")
    tokens.set_data_from_numpy(np.array([8], dtype=np.int32))
    temperature = kind.InferInput("temperature", [1], "FP32")
    temperature.set_data_from_numpy(np.array([0], dtype=np.float32))
    answer = client.infer(MODEL, [prompt, tokens, temperature])
    return answer.as_numpy("text_output")[0].decode()


print(
    json.dumps(
        {
            "http": _asked(
                tritonclient.http.InferenceServerClient(f"127.0.0.1:{HTTP}", network_timeout=120), tritonclient.http
            ),
            "grpc": _asked(tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{GRPC}"), tritonclient.grpc),
        }
    )
)
