"""Containers of one machine: a file for compose, and a unit of Podman's Quadlet.

Source: https://compose-spec.io, https://docs.podman.io/en/latest/markdown/podman-systemd.unit.5.html
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from appliance.export.deployment import CACHE, CONFIG, GROUP, USER, Deployment
from appliance.export.yaml_writer import to_yaml


def compose(deployment: Deployment) -> str:
    """Return a `compose.yaml`."""
    cache, stores = f"{deployment.name}-cache", _stores(deployment)
    service: dict[str, Any] = {
        "image": deployment.image,
        "restart": "unless-stopped",
        **({"command": _command(deployment)} if deployment.restart_options else {}),
        "user": f"{USER}:{GROUP}",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "ports": [f"{port}:{port}" for name, port in deployment.ports.items() if name != "probes"],
        "volumes": [
            *_mounts(deployment),
            *(f"{source}:{target}:ro" for target, source in deployment.secret_files.items()),
            f"{cache}:{CACHE}",
            *(f"{volume}:{path}" for volume, path in stores.items()),
        ],
        "stop_grace_period": f"{deployment.stop_seconds}s",
        "healthcheck": {
            "test": ["CMD", "appliance", "probe", "live"],
            "interval": "30s",
            "timeout": "20s",
            "start_period": f"{deployment.load_seconds}s",
        },
    }
    # `:?` has compose refuse to start without a value.
    variables = {
        name: f"${{{name}:?must be set}}" if is_required else f"${{{name}:-}}"
        for name, is_required in deployment.variables.items()
    }
    if environment := {**deployment.settings, **variables}:
        service["environment"] = environment
    if deployment.shared_memory:
        service["shm_size"] = deployment.shared_memory.replace("Gi", "gb")
    if deployment.gpus:
        device = {"driver": "nvidia", "count": deployment.gpus, "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    comment = f"{deployment.file.name} in a container: docker compose up --detach"
    return to_yaml(
        comment, [{"services": {deployment.name: service}, "volumes": {each: {} for each in (cache, *stores)}}]
    )


def quadlet(deployment: Deployment) -> str:
    """Return a `NAME.container`, which systemd runs with Podman."""
    lines = [
        f"# {deployment.file.name} in a container of Podman, 5 or later:",
        f"#   ~/.config/containers/systemd/{deployment.name}.container",
        *_secret_commands(deployment),
        "[Unit]",
        f"Description=Model server {deployment.name}",
        "Wants=network-online.target",
        "After=network-online.target",
        "",
        "[Container]",
        f"Image={deployment.image}",
        *([f"Exec={shlex.join(_command(deployment))}"] if deployment.restart_options else []),
        f"User={USER}:{GROUP}",
        "ReadOnly=true",
        "DropCapability=all",
        "NoNewPrivileges=true",
        *(f"PublishPort={port}:{port}" for name, port in deployment.ports.items() if name != "probes"),
        *(f"Volume={mount}" for mount in _mounts(deployment)),
        f"Volume={deployment.name}-cache:{CACHE}",
        *(f"Volume={volume}:{path}" for volume, path in _stores(deployment).items()),
        *(f"Environment={name}={value}" for name, value in deployment.settings.items()),
        *(f"Secret={_secret_of(deployment, name)},type=env,target={name}" for name in _required(deployment)),
        *(
            f"Secret={_file_secret(deployment, target)},type=mount,target={target},uid={USER},mode=0400"
            for target in deployment.secret_files
        ),
        *([f"ShmSize={deployment.shared_memory.removesuffix('i').lower()}"] if deployment.shared_memory else []),
        *(["AddDevice=nvidia.com/gpu=all"] if deployment.gpus else []),
        "HealthCmd=appliance probe live",
        "HealthInterval=30s",
        "HealthTimeout=20s",
        f"HealthStartPeriod={deployment.load_seconds}s",
        f"StopTimeout={deployment.stop_seconds}",
        "",
        "[Service]",
        "Restart=on-failure",
        # Podman pulls the image first; it then waits for the container to stop.
        "TimeoutStartSec=900",
        f"TimeoutStopSec={deployment.stop_seconds + 10}",
        "",
        "[Install]",
        "WantedBy=default.target",
    ]
    return "\n".join(lines) + "\n"


def _command(deployment: Deployment) -> list[str]:
    return ["serve", str(CONFIG), *deployment.restart_options]


def _mounts(deployment: Deployment) -> Iterator[str]:
    yield f"{deployment.file}:{CONFIG}:ro"
    yield from (f"{path}:{path}:ro" for path in deployment.model_paths)
    root = deployment.config.storage.pvc_root
    yield from (f"{root / claim}:{root / claim}:ro" for claim in deployment.claims)


def _stores(deployment: Deployment) -> dict[str, Path]:
    """The volumes of what clients store."""
    return {f"{deployment.name}{re.sub('[^a-zA-Z0-9]+', '-', str(path))}": path for path in deployment.stores}


def _required(deployment: Deployment) -> Iterator[str]:
    """The variables without a default: a secret that does not exist keeps the container from starting."""
    return (name for name, is_required in deployment.variables.items() if is_required)


def _secret_of(deployment: Deployment, variable: str) -> str:
    return f"{deployment.name}-{variable.lower().replace('_', '-')}"


def _file_secret(deployment: Deployment, target: Path) -> str:
    return f"{deployment.name}{re.sub('[^a-zA-Z0-9.]+', '-', str(target))}"


def _secret_commands(deployment: Deployment) -> Iterator[str]:
    for variable in _required(deployment):
        yield f'#   printf %s "${variable}" | podman secret create {_secret_of(deployment, variable)} -'
    for target, source in deployment.secret_files.items():
        yield f"#   podman secret create {_file_secret(deployment, target)} {source}"
