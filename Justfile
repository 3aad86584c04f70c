# The first recipe is the default: everything that CI runs.

# The GPU build of vLLM if the machine has a GPU, else the CPU build; VARIANT overrides it.
variant := env("VARIANT", `command -v nvidia-smi >/dev/null && echo gpu || echo cpu`)
# A local directory of wheels, if set: a source for the CPU build of torch.
links := env("UV_FIND_LINKS", env("PIP_FIND_LINKS", ""))
# Otherwise the CPU build of torch comes from PyTorch's index, which uv knows by name.
torch := if links != "" { "--find-links '" + links + "'" } else if variant == "cpu" { "--torch-backend cpu" } else { "" }
python := ".venv/bin/python"
# The version that the pins in requirements/ are compiled for.
python_version := "3.11"
uv := ".venv/bin/uv"
sbom_tool := "cyclonedx-bom==7.5.0"
# The address of the repository, for metadata and labels.
project_url := env("PROJECT_URL", `git remote get-url origin 2>/dev/null | sed -n 's#^https://[^/@]*@#https://#; /^https:/p' || true`)
# Tests start hundreds of processes; without bytecode files each would compile the package again.
export PYTHONDONTWRITEBYTECODE := ""

# Run everything that CI runs: format, lint, types, docs, tests.
check: setup _fmt lint types docs test

# Create .venv with exactly the pinned packages; does nothing if it is up to date.
setup:
    #!/usr/bin/env bash
    set -euo pipefail
    want="{{ variant }} $(cat requirements/*.txt pyproject.toml | sha256sum)"
    if [ "$(cat .venv/.made-of 2>/dev/null)" = "$want" ]; then exit 0; fi
    # On a terminal, uv shows its progress.
    quiet=--quiet; if [ -t 2 ]; then quiet=; fi
    step=1 hint=
    trap 'echo "set-up failed in step $step of 3$hint" >&2' ERR
    if [ ! -x {{ uv }} ] || ! {{ python }} -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'; then
        rm -rf .venv
        echo "set-up, step 1 of 3: .venv with Python {{ python_version }}" >&2
        {{ just_executable() }} _venv
    fi
    echo "set-up, step 2 of 3: $(sort -u requirements/{{ variant }}.txt requirements/dev.txt | grep -c ==) packages for {{ variant }};" \
        "the first time, gigabytes are downloaded, which takes minutes" >&2
    step=2
    if [ {{ variant }} = cpu ]; then
        wheel="the wheel of $(grep '^torch==' requirements/cpu.txt)"
        hint=": it needs the CPU build of torch, which comes from PyTorch's own index; where that cannot be reached,"
        hint+=" set UV_FIND_LINKS to a directory with $wheel"
        if [ -n '{{ links }}' ]; then hint='; for torch, {{ links }} must have '$wheel; fi
    fi
    {{ uv }} pip sync $quiet --python {{ python }} --compile-bytecode {{ torch }} \
        requirements/{{ variant }}.txt requirements/dev.txt
    step=3 hint=
    echo "set-up, step 3 of 3: Appliance itself" >&2
    {{ uv }} pip install --quiet --python {{ python }} --no-deps --editable .
    echo "$want" > .venv/.made-of

# Create .venv with uv in it, by the uv of this machine or one that pip brings.
_venv:
    #!/usr/bin/env bash
    set -euo pipefail
    pin=$(grep '^uv==' requirements/dev.txt)
    uv=$(command -v uv || true)
    if [ -z "$uv" ]; then
        folder=$(mktemp -d)
        trap 'rm -rf "$folder"' EXIT
        # With a target of its own, pip works where the system's Python is externally managed.
        if ! PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --target "$folder" "$pin"; then
            echo "set-up needs uv, or python3 with pip (Debian, Ubuntu: apt install python3-pip)" >&2
            exit 1
        fi
        uv=$folder/bin/uv
    fi
    # The pins are the same for all three versions, so a machine that can reach only a package index works too.
    if ! failure=$("$uv" venv --quiet --python {{ python_version }} .venv 2>&1); then
        if ! "$uv" venv --quiet --no-python-downloads --python '>=3.11,<3.14' .venv; then
            echo "$failure" >&2
            echo "set-up needs Python 3.11, 3.12 or 3.13 (Debian, Ubuntu: apt install python3); python3 is" \
                "$(python3 --version 2>&1), and uv could not download Python {{ python_version }}" >&2
            exit 1
        fi
        echo "uv could not download Python {{ python_version }}; .venv has $(.venv/bin/python --version) of this machine" >&2
    fi
    "$uv" pip install --quiet --python {{ python }} "$pin"

# Serve an example or any other config; SIGTERM of just stops the server, not a shell in between.
serve file *args: setup
    exec .venv/bin/appliance serve {{ file }} {{ args }}

# Run the tests; arguments go to pytest. Without arguments, three processes share them, since tests often wait.
[positional-arguments]
test *args: setup
    #!/usr/bin/env bash
    set -euo pipefail
    if (( $# )); then exec {{ python }} -m pytest "$@"; fi
    engines=(
        tests/{bench,encoding,engines,serving} tests/planner/test_{real_engines,serve}.py tests/test_{examples,parsers}.py
        tests/adapters/test_own_model.py tests/oip/test_language_model.py
    )
    storage=(tests/{predictors,server,storage})
    logs=$(mktemp -d)
    set -m  # Job control: each of the processes can be interrupted.
    {{ python }} -m pytest "${engines[@]}" >"$logs/engines" 2>&1 &
    engines_pid=$!
    {{ python }} -m pytest "${storage[@]}" >"$logs/storage" 2>&1 &
    storage_pid=$! others=0 failed=0
    {{ python }} -m pytest "${engines[@]/#/--ignore=}" "${storage[@]/#/--ignore=}" || others=$?
    if (( others == 2 || others > 128 )); then kill -INT -- -$engines_pid -$storage_pid || true; fi
    wait $engines_pid || failed=$?
    wait $storage_pid || failed=$?
    printf '\nThe tests of engines:\n'
    cat "$logs/engines"
    printf '\nThe tests of storage, servers and predictors:\n'
    cat "$logs/storage"
    rm -r "$logs"
    exit $(( others > failed ? others : failed ))

# Run the contract tests: HTTP, CLI, golden files.
contract *args: setup
    {{ python }} -m pytest -m contract {{ args }}

# Run the slow tests: every example, twenty kills of each store's download, 500 cases per property.
test-long *args: setup
    {{ python }} -m pytest -m 'long or hypothesis' --hypothesis-profile long {{ args }}

# Inject every fault into a server at full size, and print a table of the results.
faults *args: setup
    {{ python }} -m pytest -m faults tests/faults tests/serving tests/engines/test_multi_node.py tests/test_parsers.py {{ args }}

# Compare plans with vLLM engines: memory, and refused layouts.
truth *args: setup
    {{ python }} -m pytest -m '' tests/planner/test_real_engines.py {{ args }}

# Build and test the images of CPUs and proxies, alone and with the manifests; arguments go to the builder.
test-image *args: setup
    for variant in cpu proxy; do VARIANT=$variant {{ just_executable() }} image {{ args }} || exit; done
    {{ python }} -m pytest -m image tests/cluster

# Serve examples and check their `expect:`: the given ones, or all that this machine can run.
smoke *files: setup
    {{ python }} tests/with_upstreams.py .venv/bin/appliance smoke {{ if files == "" { "$(" + python + " tests/example_files.py)" } else { files } }}

# Run a benchmark next to similar software: batch, embeddings, front-end, overload, parsing, proxy, quality, start, storage.
bench what *args: setup
    PYTHONPATH=tests {{ python }} -m bench.{{ replace(what, "-", "_") }} {{ args }}

# Format the code.
fmt: setup
    .venv/bin/ruff format .
    .venv/bin/ruff check --fix --quiet .

_fmt: setup
    .venv/bin/ruff format --check . || (echo 'run: just fmt' && false)

# Lint the code.
lint: setup
    .venv/bin/ruff check . || (echo 'run: just fmt' && false)

# Check the types.
types: setup
    .venv/bin/mypy

# Generate the schemas from the config classes and the pinned vLLM, and the reference from both.
schemas: setup && reference
    {{ python }} -m appliance.engines.vllm.schema
    {{ python }} -m appliance.config.write_schemas

# Generate docs/reference/ and the comments of examples/everything.yaml from the code.
reference: setup
    {{ python }} docs/generate_reference.py

# Build the documentation in .site/; a broken link is an error.
docs: setup
    NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict
    # llms.txt leads to the pages as they are written.
    cd docs && find . -name '*.md' -exec cp --parents '{}' ../.site ';'

# Generate the gRPC messages from the .proto file.
protos: setup
    {{ python }} -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. \
        appliance/tensors/grpc/inference.proto

# Update the pinned requirements; the files contain no index addresses.
lock: setup
    #!/usr/bin/env bash
    set -euo pipefail
    pin() { {{ uv }} pip compile --quiet --upgrade --no-header --no-annotate --python-version {{ python_version }} "$@"; }
    pin {{ torch }} --override requirements/cpu-overrides.txt --extra cpu --extra all -o requirements/cpu.txt pyproject.toml
    pin --extra gpu --extra all -o requirements/gpu.txt pyproject.toml
    # Litestar makes examples with faker and polyfactory, which nothing asks it for; pip is for pypi://.
    pin --extra grpc --extra tls --extra socks --extra tracing --no-emit-package faker --no-emit-package polyfactory \
        --no-emit-package pip -c requirements/cpu.txt -o requirements/proxy.txt pyproject.toml
    # Without what differs between the variants.
    pin --group dev {{ torch }} --override requirements/cpu-overrides.txt --no-emit-package torch \
        --no-emit-package setuptools -c requirements/cpu.txt -o requirements/dev.txt

# Build the wheel and the source distribution into dist/; PROJECT_URL is the address of the repository.
build: setup
    PROJECT_URL='{{ project_url }}' {{ uv }} build --out-dir dist

# Write a CycloneDX file with the Python packages of each image.
sbom folder="dist": setup
    # In an environment of its own: its packages slow down each import of jsonschema by a second.
    mkdir -p '{{ folder }}'
    for variant in cpu gpu proxy; do {{ uv }} tool run --from {{ sbom_tool }} cyclonedx-py requirements --pyproject pyproject.toml --mc-type application \
        --output-reproducible --output-file "{{ folder }}/sbom-$variant.cdx.json" "requirements/$variant.txt"; done

# Build the container image: VARIANT is cpu, gpu or proxy, CA_FILE an authority to trust while building.
image *args:
    #!/usr/bin/env bash
    set -euo pipefail
    builder="$(command -v podman || command -v buildah || command -v docker)" \
        || { echo 'install podman, buildah or docker' >&2; exit 1; }
    options=(--build-arg VARIANT={{ variant }} --tag localhost/appliance:{{ variant }})
    # The default image format of podman and buildah has no HEALTHCHECK.
    if [[ "$builder" != */docker ]]; then options+=(--format docker --layers); fi
    options+=(
        --build-arg VERSION="$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)"
        --build-arg REVISION="$(git rev-parse HEAD 2>/dev/null)"
        --build-arg CREATED="$(TZ=UTC git log -1 --format=%cd --date=format-local:%Y-%m-%dT%H:%M:%SZ 2>/dev/null)"
        --build-arg SOURCE='{{ project_url }}'
    )
    if [ -n "${CA_FILE:-}" ]; then options+=(--secret "id=ca,src=$CA_FILE"); fi
    if [ -d '{{ links }}' ]; then options+=(--build-context wheels='{{ links }}'); fi
    if ! "$builder" build "${options[@]}" --file Containerfile {{ args }} .; then
        if [ -z "${CA_FILE:-}" ]; then
            echo "if a certificate was not trusted: behind a proxy that inspects TLS, set CA_FILE to its authority" >&2
        fi
        exit 1
    fi
