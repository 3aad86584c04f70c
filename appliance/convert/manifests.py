"""KServe's InferenceService, ServingRuntime and LLMInferenceService, and workloads of vLLM, as a config."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ruamel.yaml.comments import CommentedMap

from appliance.config.raw_config import DataPath, RawConfig, items
from appliance.convert.containers import add_container, drop_variables, find_container
from appliance.convert.draft import Draft, env, mapping
from appliance.convert.manifest import CREDENTIALS, Manifest
from appliance.convert.predictors import FRAMEWORKS, add_predictor
from appliance.convert.vllm import NoModelError

# Where KServe puts the files of a model.
_MODELS = "/mnt/models"

_FORMATS_OF_LLMS = frozenset({"huggingface", "vllm"})

# The runtimes that KServe installs; what they say is known here.
_RUNTIMES = re.compile(r"kserve-(huggingface|vllm|sklearn|xgb|lgb|predictive|ml|triton)server(-multinode)?")

# The keys of a predictor that are old forms of `model` with a format of this name.
_OLD_FORMS = (
    "sklearn",
    "xgboost",
    "lightgbm",
    "onnx",
    "huggingface",
    "tensorflow",
    "pytorch",
    "triton",
    "pmml",
    "paddle",
)

_PREDICTOR: DataPath = ("spec", "predictor")
_IMAGE_OF_VLLM = "runs neither vLLM nor huggingfaceserver"


def convert(raw: RawConfig, draft: Draft, root: DataPath = ()) -> None:
    """Convert the manifest at the path `root` of a file into the draft."""
    kinds: Mapping[str, Callable[[Manifest], None]] = {
        "InferenceService": _convert_inference_service,
        "ServingRuntime": _convert_serving_runtime,
        "ClusterServingRuntime": _convert_serving_runtime,
        "LLMInferenceService": _convert_llm_inference_service,
        **dict.fromkeys(("Deployment", "StatefulSet"), _convert_workload),
        "Pod": _convert_pod,
    }
    manifest = Manifest(raw, draft, root)
    if manifest.kind in kinds:
        try:
            kinds[manifest.kind](manifest)
        except NoModelError:
            reason = "names no model; must have storageUri or model.uri, or in args the model of vLLM"
            draft.at(manifest.line("kind")).drop(f"{manifest.kind} {manifest.name}", reason)
        manifest.drop_rest()
    else:
        manifest.drop(("kind",), f"is none of {', '.join(kinds)}", manifest.kind)


def _convert_inference_service(manifest: Manifest) -> None:
    form = next((each for each in ("model", *_OLD_FORMS) if manifest.find(*_PREDICTOR, each) is not None), None)
    if form is None:
        model = _convert_containers(manifest, (*_PREDICTOR, "containers"), manifest.name, None)
    else:
        model = _convert_model(manifest, form)
    if model is not None:
        _put_keys(manifest, model, _PREDICTOR, _LIMITS)
        _put_keys(manifest, model, (*_PREDICTOR, "workerSpec"), _WORKER_SPEC)


def _convert_model(manifest: Manifest, form: str) -> CommentedMap | None:
    """Add the model below `model`, or below an old form of it, such as `sklearn`."""
    path: DataPath = (*_PREDICTOR, form)
    format_ = str(manifest.take(*path, "modelFormat", "name") or ("huggingface" if form == "model" else form))
    manifest.take(*path, "modelFormat", "version")
    manifest.take(*path, "runtimeVersion")
    if _RUNTIMES.fullmatch(str(manifest.find(*path, "runtime"))):
        manifest.take(*path, "runtime")
    if manifest.take(*path, "protocolVersion") == "grpc-v2":
        manifest.draft.put("server.grpc_port", 8081, "KServe's port for protocolVersion grpc-v2")
    uri = _uri(manifest, path)
    if format_ in FRAMEWORKS:
        if uri is None:
            raise NoModelError
        return add_predictor(manifest, path, format_, uri)
    if format_.lower() in _FORMATS_OF_LLMS:
        model = add_container(manifest, path, manifest.name, uri)
        drop_variables(manifest, path)
        return model
    known = ", ".join(sorted({*FRAMEWORKS, *_FORMATS_OF_LLMS}))
    where = (*path, "modelFormat", "name") if form == "model" else path
    manifest.drop(where, f"models of the format {format_} are not served; the formats here are {known}")
    return None


def _uri(manifest: Manifest, path: DataPath) -> str | None:
    """The URI of a model: one text, one entry of a list, or a path in the bucket of a storage secret."""
    uri = manifest.take(*path, "storageUri")
    uris = manifest.find(*_PREDICTOR, "storageUris")
    if uri is None and isinstance(uris, list) and len(uris) == 1:
        manifest.take(*_PREDICTOR, "storageUris", 0, "mountPath")
        uri = manifest.take(*_PREDICTOR, "storageUris", 0, "uri")
    parameters = mapping(manifest.find(*path, "storage", "parameters"))
    if uri is None and {"type", "bucket"} <= parameters.keys():
        kind, bucket = (manifest.take(*path, "storage", "parameters", key) for key in ("type", "bucket"))
        uri = f"{kind}://{bucket}/{manifest.take(*path, 'storage', 'path') or ''}"
        if manifest.find(*path, "storage", "key"):
            manifest.drop((*path, "storage", "key"), CREDENTIALS)
    return None if uri is None else str(uri)


def _convert_serving_runtime(manifest: Manifest) -> None:
    model = _convert_containers(manifest, ("spec", "containers"), manifest.name, _MODELS)
    if model is not None:
        model.yaml_add_eol_comment("KServe puts the name of the InferenceService here", "name")
        _put_keys(manifest, model, ("spec", "workerSpec"), _WORKER_SPEC)


def _convert_workload(manifest: Manifest) -> None:
    _convert_containers(manifest, ("spec", "template", "spec", "containers"), None, None, port=8000)


def _convert_pod(manifest: Manifest) -> None:
    _convert_containers(manifest, ("spec", "containers"), None, None, port=8000)


def _convert_containers(
    manifest: Manifest, path: DataPath, name: str | None, uri: str | None, *, port: int = 8080
) -> CommentedMap | None:
    found = find_container(manifest, path)
    if found is None:
        manifest.drop(path, _IMAGE_OF_VLLM)
        return None
    model = add_container(manifest, found, name, uri, port=port)
    drop_variables(manifest, found)
    return model


def _convert_llm_inference_service(manifest: Manifest) -> None:
    path = _main_container(manifest)
    uri = manifest.take("spec", "model", "uri")
    if uri is None:
        raise NoModelError
    served = str(manifest.take("spec", "model", "name") or manifest.name)
    comment = "KServe's gateway connects here, with TLS: examples/kubernetes/llminferenceservice.yaml"
    model = add_container(manifest, path, served, str(uri), port=8000, comment=comment)
    drop_variables(manifest, path)
    draft = manifest.draft
    draft.put("metadata.name", manifest.name, "KServe's gateway routes by these names")
    if namespace := manifest.find("metadata", "namespace"):
        draft.put("metadata.namespace", namespace)
    _put_keys(manifest, model, ("spec", "parallelism"), _PARALLELISM)
    _put_nodes(manifest, model)
    _put_adapters(manifest, model)
    _put_offloading(manifest, model)
    _put_tracing(manifest)


def _main_container(manifest: Manifest) -> DataPath:
    containers = items(manifest.find("spec", "template", "containers"))
    index = next((index for index, each in containers if mapping(each).get("name") == "main"), 0)
    return ("spec", "template", "containers", index)


_PARALLELISM: Mapping[str, str] = {
    "tensor": "layout.tensor_parallel",
    "pipeline": "layout.pipeline_parallel",
    "data": "layout.data_parallel",
    "expert": "layout.expert_parallel",
}
_LIMITS: Mapping[str, str] = {"timeout": "limits.total_seconds", "containerConcurrency": "limits.concurrent"}
_WORKER_SPEC: Mapping[str, str] = {
    "tensorParallelSize": "layout.tensor_parallel",
    "pipelineParallelSize": "layout.pipeline_parallel",
}


def _put_keys(manifest: Manifest, model: CommentedMap, path: DataPath, keys: Mapping[str, str]) -> None:
    for key, target in keys.items():
        value = manifest.take(*path, key)
        # 0 is no limit in KServe.
        if value:
            manifest.draft.put(target, value, into=model)


def _put_nodes(manifest: Manifest, model: CommentedMap) -> None:
    """The machines of data parallelism, whose ranks KServe gets from LeaderWorkerSet as we do."""
    copies, local = (manifest.find("spec", "parallelism", key) for key in ("data", "dataLocal"))
    if not isinstance(copies, int) or not isinstance(local, int) or not 0 < local < copies or copies % local:
        return
    manifest.take("spec", "parallelism", "dataLocal")
    nodes = {"count": copies // local, "rank": env("LWS_WORKER_INDEX"), "address": env("LWS_LEADER_ADDRESS")}
    manifest.draft.put("layout.nodes", nodes, "set by LeaderWorkerSet on each machine", into=model)


def _put_adapters(manifest: Manifest, model: CommentedMap) -> None:
    """LoRA adapters, and vLLM's limits of them."""
    path: DataPath = ("spec", "model", "lora")
    adapters = [mapping(each) for _, each in items(manifest.take(*path, "adapters"))]
    if adapters:
        entries = [{"name": each.get("name"), "storage": {"uri": each.get("uri")}} for each in adapters]
        manifest.draft.put("adapters", entries, into=model)
    for key, name in (("maxRank", "max_lora_rank"), ("maxAdapters", "max_loras"), ("maxCpuAdapters", "max_cpu_loras")):
        value = manifest.take(*path, key)
        if value is not None:
            manifest.draft.put(("engine", "args", name), value, into=model)


def _put_offloading(manifest: Manifest, model: CommentedMap) -> None:
    """The part of the KV cache in the memory of the machine, for which KServe writes vLLM's `kv_transfer_config`."""
    for path in (("spec", "kvCacheOffloading"), ("spec", "workload", "kvCacheOffloading")):
        size = _gibibytes(manifest.find(*path, "cpu"))
        if size and "kv_transfer_config" not in mapping(mapping(model.get("engine")).get("args")):
            manifest.take(*path, "cpu")
            manifest.draft.put(("engine", "args", "kv_offloading_size"), size, "GiB", into=model)
            if manifest.find(*path, "evictionPolicy") == "lru":
                manifest.take(*path, "evictionPolicy")


def _gibibytes(quantity: Any) -> float | None:
    """A quantity of Kubernetes, such as `10Gi`, in GiB; None if it is none."""
    found = re.fullmatch(r"\+?(\d+\.?\d*|\.\d+)(?:([KMGTPE]i)|([kMGTPE]?))", str(quantity))
    if found is None:
        return None
    power = "KMGTPE".index(found[2][0]) + 1 if found[2] else "_kMGTPE".index(found[3] or "_")
    size = round(float(found[1]) * float(1024 if found[2] else 1000) ** power / 2**30, 3)
    return int(size) if size.is_integer() else size


def _put_tracing(manifest: Manifest) -> None:
    """Spans: KServe names a collector's port for gRPC, and ours are sent over HTTP."""
    endpoint = manifest.take("spec", "tracing", "exporterEndpoint")
    if endpoint:
        changed = re.sub(r":4317$", ":4318", str(endpoint))
        comment = "4317 is the collector's port for gRPC" if changed != endpoint else ""
        manifest.draft.put("tracing.endpoint", changed, comment)
    sampler, argument = (manifest.find("spec", "tracing", key) for key in ("sampler", "samplerArg"))
    if endpoint and re.fullmatch(r"(parentbased_)?always_on", str(sampler)):
        manifest.take("spec", "tracing", "sampler")
        manifest.draft.put("tracing.sample", 1.0)
    elif endpoint and argument is not None and re.fullmatch(r"[01](\.\d+)?|\.\d+", str(argument)):
        manifest.draft.put("tracing.sample", float(manifest.take("spec", "tracing", "samplerArg")))
        manifest.take("spec", "tracing", "sampler")
