"""What an import of vLLM in a front end leaves out, and how it comes when it is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.slow

_IMPORTED = """
import json, sys
from appliance.engines.vllm.engine import import_vllm
import_vllm()
unused = "cv2 grpc networkx pandas scipy sklearn sympy torch._dynamo torch._inductor transformers.modeling_utils"
imported = sorted({*unused.split()} & {*sys.modules})
"""

_MEDIA = """
import numpy as np, vllm.multimodal.audio, vllm.multimodal.video
samples = vllm.multimodal.audio.resample_audio_scipy(np.zeros(160), orig_sr=16000, target_sr=8000).shape[0]
print(json.dumps([imported, samples, vllm.multimodal.video.cv2.CAP_PROP_FPS]))
"""

_MODEL_CLASSES = """
from transformers import AutoModel, BertConfig
from transformers.generation import GenerationMixin
from transformers.models.auto import auto_factory
from transformers.utils.type_validators import ACT2FN
has_activation = "gelu" in ACT2FN and "gelo" not in ACT2FN
AutoModel.from_config(BertConfig(num_hidden_layers=1, hidden_size=12, intermediate_size=12))

import torch._inductor.lowering
from torch._inductor.custom_graph_pass import CustomGraphPass
from vllm.compilation.passes.inductor_pass import InductorPass
is_patched = "vllm::any" in torch._inductor.lowering.FALLBACK_ALLOW_LIST
compiled = torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item()
is_base = auto_factory.GenerationMixin is GenerationMixin
print(json.dumps([has_activation, is_base, issubclass(InductorPass, CustomGraphPass), is_patched, compiled]))
"""


def _run(script: str) -> Any:  # Any: JSON values
    environment = {**os.environ, "VLLM_CONFIGURE_LOGGING": "0", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    process = subprocess.run([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(process.stdout.splitlines()[-1])


def test_libraries_that_a_front_end_does_not_need_are_imported_when_they_are_used() -> None:
    """An import of vLLM has no compiler and no model classes; sound and video work as without us."""
    assert _run(_IMPORTED + _MEDIA) == [[], 80, 5]


@pytest.mark.long
def test_model_classes_and_the_compiler_work_after_an_import_without_them() -> None:
    """What a Python model class may use has the same classes, and vLLM's patches of them."""
    assert _run(_IMPORTED + _MODEL_CLASSES) == [True, True, True, True, 2.0]
