"""Files of other servers, each beside the config that is made of it and the list of what that does not keep."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from appliance.cli.main import main
from appliance.cli.options import VALIDATORS, load_config
from appliance.config.json_schema import OPTIONS, engine_schema
from appliance.convert.command_line import Word
from appliance.convert.draft import Draft
from appliance.convert.source import convert_words
from appliance.convert.vllm import ALWAYS
from appliance.core.errors import ConfigError

FOLDER = Path(__file__).parent / "cases"
CASES = sorted(file for file in FOLDER.iterdir() if file.suffix != ".txt" and ".converted" not in file.name)


def _converted(*words: str) -> Result:
    return CliRunner().invoke(main, ["convert", *words])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_a_file_becomes_a_config_and_the_list_of_what_it_does_not_keep(
    case: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The config is on standard output, and each part that it does not keep is on standard error with its line."""
    monkeypatch.chdir(FOLDER)

    done = _converted(case.name)

    assert done.exit_code == 0
    assert done.stdout == case.with_suffix(".converted.yaml").read_text()
    assert done.stderr == case.with_suffix(".txt").read_text()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_a_converted_file_is_valid(case: Path) -> None:
    """But for the variables that it refers to, which are not set here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(FOLDER)
        problems = _problems(case.with_suffix(".converted.yaml"))

    assert problems == []


def _problems(file: Path) -> list[str]:
    try:
        load_config(file, environ={})
    except ConfigError as error:
        return [str(problem) for problem in error.problems if not problem.is_unresolved]
    return []


def test_no_case_spells_out_a_secret() -> None:
    """A key that the source spells out is read from a variable, in the config and in the list."""
    texts = [file.read_text() for file in FOLDER.iterdir() if file not in CASES]

    assert not [text for text in texts if "spelled-out" in text or "sk-1234567890" in text]


def test_a_command_line_is_converted_without_a_file() -> None:
    """`appliance convert vllm serve ...` takes the words as they were typed."""
    words = ("vllm", "serve", "Qwen/Qwen3-8B", "-tp", "2", "--port=9000", "-dph", "-cc.cudagraph_mode", "FULL")

    done = _converted(*words)

    assert done.exit_code == 0
    assert done.stderr == ""
    assert done.stdout.splitlines()[2:] == [
        "models:",
        "  - name: Qwen/Qwen3-8B",
        "    class: generative",
        "    storage:",
        "      uri: hf://Qwen/Qwen3-8B",
        "    layout:",
        "      tensor_parallel: 2",
        "    engine:",
        "      args:",
        "        data_parallel_hybrid_lb: true",
        "        compilation_config:",
        "          cudagraph_mode: FULL",
        "server:",
        "  port: 9000",
    ]


def test_the_file_of_options_is_read_where_the_command_names_it(tmp_path: Path) -> None:
    """Options of the command line go over those of the file, whose faults are listed by its own lines."""
    options = tmp_path / "options.yaml"
    options.write_text("model: a/b\nmax-model-len: 4096\ntensor-parallel-size: 2\nswap-space: 4\n")

    done = _converted("vllm", "serve", "Qwen/Qwen3-8B", "--config", str(options), "-tp", "4")

    assert done.exit_code == 0
    assert "uri: hf://Qwen/Qwen3-8B\n" in done.stdout
    assert "tensor_parallel: 4\n" in done.stdout
    assert "max_model_len: 4096\n" in done.stdout
    assert done.stderr == f"{options}:4: not kept: --swap-space 4: is no option of this version of vLLM\n"


@pytest.mark.parametrize("words", [["--config", "/nowhere.yaml"], ["--config=/nowhere.yaml"], ["--config"]])
def test_a_file_of_options_that_is_not_there_is_listed(words: list[str]) -> None:
    """The rest of the command is converted."""
    done = _converted("vllm", "serve", "a/b", *words)

    assert done.exit_code == 0
    assert "not kept: --config" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["--max-model-len", "-5"],
        ["--max-num-seqs", "0"],
        ["--port", "99999"],
        ["--gpu-memory-utilization", "7"],
        ["--quantization", "none-such"],
        ["--lora-modules", "x"],
        ["--lora-modules", '{"name": 1}'],
        ["--lora-modules", "a b=c"],
        ["--hf-overrides", "{"],
        ["--hf-overrides.a", "1", "--hf-overrides.a.b", "2", "--hf-overrides."],
        ["--max-model-len", "9" * 400 + "k"],
        ["--speculative-config", "[" * 100_000],
        ["--seed", "\ue000file:/etc/passwd\ue001"],
        ["--tool-call-parser", "none-such"],
        ["--ssl-keyfile", "/key.pem"],
        ["--uvicorn-log-level", "loud"],
        ["--api-key"],
        ["--chat-template", "{% if %}"],
        ["--master-port", "0", "--nnodes", "2"],
        ["--allowed-origins", '["*"]', "--host", ""],
        ["-", "--", "---x", "-O9", "=", "-x.y", "--.", ""],
    ],
    ids=lambda words: " ".join(words)[:40],
)
def test_an_odd_command_line_becomes_a_valid_config(words: list[str], tmp_path: Path) -> None:
    """What a config cannot have is listed, and what was converted is valid."""
    done = _converted("vllm", "serve", "a/b", *words)

    (tmp_path / "config.yaml").write_text(done.stdout)
    assert done.exit_code == 0
    assert _problems(tmp_path / "config.yaml") == []


# An option by its type, with a value that is no default.
VALUES = {
    "boolean": [],
    "string": ["other"],
    "integer": ["3"],
    "number": ["3.5"],
    "size": ["3"],
    "array": ["3,4"],
    "json": ['["x"]'],
    "json or string": ['{"x": 1}'],
}


@pytest.mark.parametrize("name", sorted(engine_schema()[OPTIONS].keys() - ALWAYS))
def test_no_option_of_vllm_is_lost(name: str) -> None:
    """Each one, or its opposite, changes the config or is listed."""
    flag, value = name.replace("_", "-"), VALUES[engine_schema()[OPTIONS][name]["type"]]
    flags = [f"--{flag}"] if value else [f"--{flag}", f"--no-{flag}"]
    drafts = [_draft(each, *value) for each in flags]

    assert any(draft.unkept or draft.text() != _without_options() for draft in drafts)


def _draft(*words: str) -> Draft:
    return convert_words([Word(word, 1) for word in ("vllm", "serve", "a/b", *words)], "x", VALIDATORS)


@cache
def _without_options() -> str:
    return _draft().text()


def test_what_only_a_shell_knows_is_listed() -> None:
    """A command in `$( )` is no value; what stands after an option that vLLM does not have may be the model."""
    text = """
    docker run -v $(pwd):/work vllm/vllm-openai --task generate a/b \\
      -tp $(nvidia-smi -L | wc -l) --served-model-name "chat-`hostname`" --max-num-seqs $SEQUENCES $MORE
    """

    done = CliRunner().invoke(main, ["convert", "-"], input=text)

    assert done.exit_code == 0
    assert "uri: hf://a/b\n" in done.stdout
    assert "max_num_seqs: ${env:SEQUENCES}\n" in done.stdout
    assert done.stderr.splitlines()[1:] == [
        "standard input:2: not kept: --task generate a/b: is no option of this version of vLLM",
        "standard input:3: not kept: -tp '$(nvidia-smi -L | wc -l)': what the shell puts here is not known",
        "standard input:3: not kept: --served-model-name 'chat-`hostname`': what the shell puts here is not known",
        "standard input:3: not kept: $MORE: is not known here; write what stands for it",
    ]


def test_what_cannot_be_without_a_wrong_part_is_listed_once() -> None:
    """With the reason of the part: an upstream without its URL is none, and neither is a model without upstreams."""
    text = """
model_list:
  - {model_name: a, litellm_params: {model: openai/a, api_base: nowhere}}
  - {model_name: b, litellm_params: {model: openai/b}}
"""

    done = CliRunner().invoke(main, ["convert", "-"], input=text)

    assert done.exit_code == 0
    assert "name: b\n" in done.stdout
    assert "name: a\n" not in done.stdout
    assert done.stderr.startswith('standard input:3: not kept: models[0]: models[0].upstreams[0].url: is "nowhere"; ')
    assert len(done.stderr.splitlines()) == 1


def test_a_manifest_in_a_command_is_read() -> None:
    """As the documentation of KServe and vLLM has it, with the lines of the whole text."""
    text = """kubectl create namespace a
    cat <<'EOF' | kubectl apply -n a -f -
    kind: Pod
    spec:
      containers: [{image: vllm, args: [--model, a/b, --swap-space=4]}]
    EOF
    kubectl get pods
    """

    done = CliRunner().invoke(main, ["convert", "-"], input=text)

    assert "uri: hf://a/b\n" in done.stdout
    assert done.stderr == "standard input:5: not kept: --swap-space=4: is no option of this version of vLLM\n"


@pytest.mark.parametrize("words", [["--task", "embed"], ["--task=score"], ["--runner", "pooling"]])
def test_a_model_that_vllm_pools_is_an_encoder(words: list[str]) -> None:
    """Also where the command line is that of an older vLLM."""
    done = _converted("vllm", "serve", "BAAI/bge-m3", *words)

    assert "class: encoder\n" in done.stdout
    assert done.stderr == ""


def test_a_quote_without_an_end_costs_nothing() -> None:
    """A log is no script, however long it is; what stands after a quote that never ends is lost with it."""
    log = "don't\n" + "a line of a log of vllm, with words\n" * 20_000

    done = CliRunner().invoke(main, ["convert", "-"], input=log)

    assert done.exit_code == 2


def test_json_is_yaml() -> None:
    """`kubectl get -o json` is converted as well."""
    text = json.dumps({"kind": "Pod", "spec": {"containers": [{"image": "vllm", "args": ["--model", "a/b"]}]}})

    done = CliRunner().invoke(main, ["convert", "-"], input=text)

    assert "uri: hf://a/b" in done.stdout


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """It is an error of the command."""
    done = _converted("vllm", "serve", "a/b", "--output", str(tmp_path))

    assert done.exit_code == 2
    assert f"{tmp_path}: cannot be written" in done.stderr


def test_a_file_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    """`--output` writes the config, which begins with the line for editors, and prints nothing."""
    done = _converted(str(FOLDER / "inferenceservice.yaml"), "--output", str(tmp_path / "config.yaml"))

    assert (done.exit_code, done.stdout) == (0, "")
    assert (tmp_path / "config.yaml").read_text().startswith("# yaml-language-server: $schema=appliance.schema.json\n")


def test_standard_input_is_a_file() -> None:
    """`kubectl get -o yaml ... | appliance convert -` needs no file."""
    text = (FOLDER / "servingruntime.yaml").read_text()

    done = CliRunner().invoke(main, ["convert", "-"], input=text)

    assert done.exit_code == 0
    assert "uri: /mnt/models" in done.stdout
    assert done.stderr.startswith("standard input:")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not an InferenceService"),
        ("ls -l\n", "is not an InferenceService"),
        ("echo vllm serve\nvllm serve --max-model-len 8192\n", "names no model"),
        ("kind: Secret\n", "kind: Secret: is none of InferenceService"),
        ("kind: [\n", "is not YAML"),
        ("model_list: []\n", "is not an InferenceService"),
        (
            "kind: InferenceService\nspec: {predictor: {model: {modelFormat: {name: tensorflow}}}}\n",
            "models of the format tensorflow are not served",
        ),
        ("kind: InferenceService\nspec: 3\n", "spec"),
        ("kind: Pod\nspec: {containers: [{image: nginx}]}\n", "runs neither vLLM nor huggingfaceserver"),
        ("kind: InferenceService\nmetadata:\n\tname: x\n", "is indented with a tab"),
        ("kind: InferenceService\nspec:\n  replicas: {{ .Values.replicas }}\n", "must be rendered first"),
        ("kind: InferenceService\nspec:\n  {{- if .Values.x }}\n  a: 1\n", "must be rendered first"),
        ("models:\n  - name: x\n    class: proxy\n", "is not an InferenceService"),
        ("jobs:\n  test:\n    run: vllm serve a/b\n", "is not an InferenceService"),
        ('vllm serve "a/b\n', "is not an InferenceService"),
        ("max-model-len: 8192\n", "names no model"),
        (
            "model_list:\n  - {model_name: a, litellm_params: {model: bedrock/b}}\n",
            "bedrock does not speak OpenAI's protocol",
        ),
    ],
)
def test_what_has_no_model_is_refused(text: str, message: str, tmp_path: Path) -> None:
    """With exit code 2, as any wrong file, and a sentence that says what can be converted or why this cannot."""
    (tmp_path / "file").write_text(text)

    done = _converted(str(tmp_path / "file"))

    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_a_file_that_is_not_there_is_named() -> None:
    """An unreadable file is an error of the command."""
    done = _converted("/nowhere/config.yaml")

    assert done.exit_code == 2
    assert "/nowhere/config.yaml" in done.stderr


def test_a_config_that_exists_is_kept(tmp_path: Path) -> None:
    """It is replaced with --force alone."""
    written = tmp_path / "config.yaml"
    written.write_text("mine")
    words = ["convert", "--output", str(written), "vllm", "serve", "org/name"]

    refused = CliRunner().invoke(main, words)
    assert (refused.exit_code, written.read_text()) == (2, "mine")
    assert CliRunner().invoke(main, [*words[:3], "--force", *words[3:]]).exit_code == 0
    assert "org/name" in written.read_text()
