"""KServe's InferenceService, ServingRuntime and LLMInferenceService as a config."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ruamel.yaml.comments import CommentedMap

from appliance.config.raw_config import DataPath, RawConfig, items
from appliance.convert import shell, vllm
from appliance.convert.command_line import Option, Word, parse
from appliance.convert.draft import Draft, env, mapping

# Where KServe puts the files of a model.
_MODELS = "/mnt/models"

# What names an object, and what a cluster adds to it.
_IDENTITY = ("name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields")

# Flags of KServe's huggingfaceserver that vLLM calls something else.
_FLAGS: Mapping[str, str] = {
    "--model_name": "--served-model-name",
    "--model_id": "--model",
    "--model_dir": "--model",
    "--model_revision": "--revision",
    "--max_length": "--max-model-len",
    "--http_port": "--port",
}

# Values of its `--task` for models that vLLM pools.
_POOLING_TASKS = frozenset({"text_embedding", "sequence_classification", "token_classification"})

# Images whose entry point is vLLM or KServe's huggingfaceserver, and a script that starts vLLM.
_IMAGE = re.compile(r"(^|/)(vllm-openai|vllm|huggingfaceserver)[^/]*$")
_SCRIPT = re.compile(r"(^|\s)vllm serve\s")

_FORMATS_OF_LLMS = frozenset({"huggingface", "vllm", "vLLM"})

_POD = "belongs to the pod: keep it in the manifest of a Deployment, such as examples/kubernetes/appliance.yaml"
_SCALING = "belongs to Kubernetes, such as in examples/kubernetes/autoscaling.yaml"
_GATEWAY = "belongs to the gateway"

# The reasons for keys that are not kept, by the key at any depth; of other keys, the manifest is named.
_REASONS: Mapping[str, str] = {
    **dict.fromkeys(("minReplicas", "maxReplicas", "replicas", "scaleTarget", "scaleMetric", "scaling"), _SCALING),
    **dict.fromkeys(("autoScaling", "rolloutStrategy", "deploymentStrategy", "canaryTrafficPercent"), _SCALING),
    **dict.fromkeys(("router", "route", "gateway", "scheduler"), _GATEWAY),
    "logger": "set logging.payloads, which writes the same CloudEvents",
    "batcher": "vLLM batches requests itself",
    "transformer": "is a server of its own; its code runs here as a model with engine.python",
    "explainer": "is a server of its own; its code runs here as a model with engine.python",
    "baseRefs": "the configs that it names are not read; convert the service as the cluster has it, with them merged",
    "prefill": "prefill and decode on separate machines are two configs, with engine.args.kv_transfer_config",
    "worker": "each machine serves the same config, with its own layout.nodes.rank",
    "workerSpec": "each machine serves the same config, with its own layout.nodes.rank",
    "dataRPCPort": "set layout.nodes.port, which is one less",
    "kvCacheOffloading": "set engine.args.kv_offloading_size, in GiB, and engine.args.kv_transfer_config",
    "confidential": "encrypted models cannot be read",
    **dict.fromkeys(("annotations", "labels"), "belongs to the objects of Kubernetes"),
    "supportedModelFormats": "belongs to KServe, which chooses a runtime by it",
    "protocolVersions": "all protocols are served",
    "multiModel": "a config has as many models as it lists",
    "serviceAccountName": "its credentials are storage.credentials or the variables of the stores",
}


def convert(raw: RawConfig, draft: Draft) -> None:
    """Convert one manifest of KServe's into the draft."""
    kinds: Mapping[str, Callable[[_Manifest], None]] = {
        "InferenceService": _convert_inference_service,
        "ServingRuntime": _convert_serving_runtime,
        "ClusterServingRuntime": _convert_serving_runtime,
        "LLMInferenceService": _convert_llm_inference_service,
    }
    kind = str(raw.find(("kind",)))
    if kind not in kinds:
        draft.drop(raw.location(("kind",)).line, f"kind: {kind}", f"is none of {', '.join(kinds)}")
        return
    manifest = _Manifest(raw, draft)
    kinds[kind](manifest)
    manifest.drop_rest()


class _Manifest:
    """A manifest that remembers which of its values were read, so that the others are listed."""

    def __init__(self, raw: RawConfig, draft: Draft) -> None:
        self.raw, self.draft = raw, draft
        self._taken: set[DataPath] = {("apiVersion",), ("kind",), ("status",)}
        self._taken |= {("metadata", key) for key in _IDENTITY}

    def take(self, *path: str | int) -> Any:  # Any: YAML
        """The value at `path`, which is then kept; None where there is none."""
        self._taken.add(path)
        return self.raw.find(path)

    def find(self, *path: str | int) -> Any:  # Any: YAML
        """The value at `path`; None where there is none."""
        return self.raw.find(path)

    def line(self, *path: str | int) -> int:
        """The line that the value at `path` begins on, with its key."""
        return (self.raw.key_locations.get(path) or self.raw.location(path)).line

    def drop(self, path: DataPath, reason: str) -> None:
        """List the value at `path` as not kept."""
        self._taken.add(path)
        self.draft.drop(self.line(*path), _dotted(path), reason)

    def drop_rest(self) -> None:
        """List every value that was not read, as one line for each mapping of which nothing was."""
        for path in self._untaken(()):
            key = next((str(part) for part in reversed(path) if part in _REASONS), "")
            self.drop(path, _REASONS.get(key, _POD))

    def _untaken(self, path: DataPath) -> Iterator[DataPath]:
        if path in self._taken:
            return
        value = self.raw.find(path) if path else self.raw.data
        is_partly_taken = any(taken[: len(path)] == path for taken in self._taken)
        if not is_partly_taken or not isinstance(value, dict | list):
            yield path
            return
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from self._untaken((*path, key))


def _dotted(path: DataPath) -> str:
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", ".".join(map(str, path)))


def _convert_inference_service(manifest: _Manifest) -> None:
    name = str(manifest.find("metadata", "name") or "model")
    model_path: DataPath = ("spec", "predictor", "model")
    uri = manifest.take(*model_path, "storageUri")
    uri = None if uri is None else str(uri)
    format_ = manifest.take(*model_path, "modelFormat", "name")
    manifest.take(*model_path, "modelFormat", "version")
    manifest.take(*model_path, "runtime")
    if manifest.find(*model_path) is None:
        _convert_containers(manifest, ("spec", "predictor", "containers"), name, None)
    elif format_ is not None and str(format_) not in _FORMATS_OF_LLMS:
        manifest.drop((*model_path, "modelFormat", "name"), f"models of the format {format_} are no language models")
        return
    else:
        model = _convert_container(manifest, model_path, name, uri)
        _put_keys(manifest, model, ("spec", "predictor"), _LIMITS)
        _put_keys(manifest, model, ("spec", "predictor", "workerSpec"), _WORKER_SPEC)


def _convert_serving_runtime(manifest: _Manifest) -> None:
    name = str(manifest.find("metadata", "name") or "model")
    model = _convert_containers(manifest, ("spec", "containers"), name, _MODELS)
    if model is not None:
        model.yaml_add_eol_comment("KServe puts the name of the InferenceService here", "name")
        _put_keys(manifest, model, ("spec", "workerSpec"), _WORKER_SPEC)


def _convert_containers(manifest: _Manifest, path: DataPath, name: str, uri: str | None) -> CommentedMap | None:
    """Add the model of the container that runs vLLM or KServe's huggingfaceserver, if there is one."""
    for index, container in items(manifest.find(*path)):
        parts = (mapping(container).get(key) for key in ("command", "args"))
        words = [str(word) for part in parts for _, word in items(part)]
        is_script = any(_SCRIPT.search(word) for word in words)
        is_vllm = shell.after_serve([Word(word, 0) for word in words]) is not None
        if is_script or is_vllm or _IMAGE.search(str(mapping(container).get("image"))):
            return _convert_container(manifest, (*path, index), name, uri)
    manifest.drop(path, "runs neither vLLM nor huggingfaceserver")
    return None


def _convert_llm_inference_service(manifest: _Manifest) -> None:
    name = str(manifest.find("metadata", "name") or "model")
    path = _main_container(manifest)
    uri = str(manifest.take("spec", "model", "uri") or _MODELS)
    served = str(manifest.take("spec", "model", "name") or name)
    model = _convert_container(manifest, path, served, uri)
    draft = manifest.draft
    draft.put("metadata.name", name, "KServe's gateway routes by these names")
    if namespace := manifest.find("metadata", "namespace"):
        draft.put("metadata.namespace", namespace)
    _put_keys(manifest, model, ("spec", "parallelism"), _PARALLELISM)
    _put_nodes(manifest, model)
    _put_adapters(manifest, model)
    _put_tracing(manifest)


def _main_container(manifest: _Manifest) -> DataPath:
    containers = items(manifest.find("spec", "template", "containers"))
    index = next((index for index, each in containers if mapping(each).get("name") == "main"), 0)
    return ("spec", "template", "containers", index)


def _convert_container(manifest: _Manifest, path: DataPath, name: str, uri: str | None) -> CommentedMap:
    """Add the model that a container serves, and the server of the first one."""
    manifest.take(*path, "name")
    manifest.take(*path, "image")
    words = [*_words(manifest, (*path, "command")), *_words(manifest, (*path, "args")), *_variables(manifest, path)]
    after = shell.after_serve(words)
    line = parse(_renamed(words if after is None else after))
    if uri is not None:
        # KServe puts the files at a path, which the words name.
        line.options.pop("model", None)
        line.positional.clear()
    served = line.options.get("served_model_name")
    is_named = served is not None and served.value not in (["{{.Name}}"], [name])
    model = vllm.add_model(manifest.draft, line, uri=uri, name=None if is_named else name)
    if "port" not in line.options and manifest.find("kind") != "LLMInferenceService":
        # The port of KServe's own servers, and of this one.
        line.options["port"] = Option("port", 8080, Word("", 0))
    if "server" not in manifest.draft.data:
        vllm.add_server(manifest.draft, line)
    return model


def _variables(manifest: _Manifest, path: DataPath) -> Iterator[Word]:
    """Yield the words of vLLM's that KServe takes from a variable; list the other variables."""
    for index, variable in items(manifest.find(*path, "env")):
        where: DataPath = (*path, "env", index)
        name = mapping(variable).get("name")
        if name == "VLLM_ADDITIONAL_ARGS" and "value" in variable:
            manifest.take(*where)
            yield from (Word(word, manifest.line(*where, "value")) for word in shlex.split(str(variable["value"])))
        else:
            manifest.drop(where, f"{name}: set the variable for `appliance serve` too")


def _words(manifest: _Manifest, path: DataPath) -> list[Word]:
    """The words of a container, each with its line; one text with blanks is a script of a shell."""
    words: list[Word] = []
    for index, text in items(manifest.take(*path)):
        line = manifest.line(*path, index)
        if _SCRIPT.search(str(text)):
            scripts = list(shell.commands(str(text)))
            words += [Word(word.text, line + word.line) for each in scripts for word in each]
        else:
            words.append(Word(str(text), line))
    return words


def _renamed(words: list[Word]) -> list[Word]:
    """The words with vLLM's flags for those of KServe's huggingfaceserver."""
    renamed = []
    for word in words:
        flag, equals, value = word.text.partition("=")
        flag = _FLAGS.get(flag.replace("-", "_").replace("__", "--", 1) if flag.startswith("--") else flag, flag)
        if flag == "--task" and value in _POOLING_TASKS:
            flag, value = "--runner", "pooling"
        renamed.append(Word(flag + equals + value, word.line))
    return renamed


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


def _put_keys(manifest: _Manifest, model: CommentedMap, path: DataPath, keys: Mapping[str, str]) -> None:
    for key, target in keys.items():
        value = manifest.take(*path, key)
        # 0 is no limit in KServe.
        if value:
            manifest.draft.put(target, value, into=model)


def _put_nodes(manifest: _Manifest, model: CommentedMap) -> None:
    """The machines of data parallelism, whose ranks KServe gets from LeaderWorkerSet as we do."""
    copies, local = (manifest.find("spec", "parallelism", key) for key in ("data", "dataLocal"))
    if not isinstance(copies, int) or not isinstance(local, int) or not 0 < local < copies or copies % local:
        return
    manifest.take("spec", "parallelism", "dataLocal")
    nodes = {"count": copies // local, "rank": env("LWS_WORKER_INDEX"), "address": env("LWS_LEADER_ADDRESS")}
    manifest.draft.put("layout.nodes", nodes, "set by LeaderWorkerSet on each machine", into=model)


def _put_adapters(manifest: _Manifest, model: CommentedMap) -> None:
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


def _put_tracing(manifest: _Manifest) -> None:
    """Spans: KServe names a collector's port for gRPC, and ours are sent over HTTP."""
    endpoint = manifest.take("spec", "tracing", "exporterEndpoint")
    if endpoint:
        changed = re.sub(r":4317$", ":4318", str(endpoint))
        comment = "4317 is the collector's port for gRPC" if changed != endpoint else ""
        manifest.draft.put("tracing.endpoint", changed, comment)
    sample = manifest.find("spec", "tracing", "samplerArg")
    if endpoint and sample is not None and re.fullmatch(r"[01](\.\d+)?|\.\d+", str(sample)):
        manifest.draft.put("tracing.sample", float(manifest.take("spec", "tracing", "samplerArg")))
        manifest.take("spec", "tracing", "sampler")
