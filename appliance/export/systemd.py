"""A unit of systemd, for a server without containers.

Source: https://www.freedesktop.org/software/systemd/man/latest/systemd.exec.html
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from appliance.export.deployment import Deployment

# systemd creates directories in it for the service's user.
_STATE = Path("/var/lib")


def systemd(deployment: Deployment, executable: Path) -> str:
    """Return a `NAME.service` that serves the config with the command `executable`, as a user of its own."""
    lines = [
        f"# {deployment.file.name} as a service: /etc/systemd/system/{deployment.name}.service",
        "",
        "[Unit]",
        f"Description=Model server {deployment.name}",
        "Wants=network-online.target",
        "After=network-online.target",
        "",
        "[Service]",
        "Type=exec",
        f"ExecStart={shlex.join([str(executable), 'serve', str(deployment.file), *deployment.restart_options])}",
        "ExecReload=kill -HUP $MAINPID",
        f"TimeoutStopSec={deployment.stop_seconds}",
        # The server ends its engines itself.
        "KillMode=mixed",
        "Restart=on-failure",
        "RestartSec=5",
        # A config with a mistake.
        "RestartPreventExitStatus=2",
        "",
        "DynamicUser=yes",
        "CacheDirectory=appliance",
        "Environment=XDG_CACHE_HOME=/var/cache HOME=/var/cache/appliance",
        *_stores(deployment),
        *_variables(deployment),
        *_credentials(deployment),
        "",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "ProtectHome=read-only",
        "PrivateTmp=yes",
        "ProtectKernelTunables=yes",
        "ProtectKernelModules=yes",
        "ProtectControlGroups=yes",
        "RestrictSUIDSGID=yes",
        "LockPersonality=yes",
        "CapabilityBoundingSet=",
        "SystemCallArchitectures=native",
        *(["PrivateDevices=yes"] if not deployment.has_gpus else []),
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "\n".join(lines) + "\n"


def _stores(deployment: Deployment) -> Iterator[str]:
    for path in deployment.stores:
        is_state = path.is_relative_to(_STATE)
        yield f"StateDirectory={path.relative_to(_STATE)}" if is_state else f"ReadWritePaths={path}"


def _variables(deployment: Deployment) -> Iterator[str]:
    if deployment.variables:
        is_optional = not any(deployment.variables.values())
        yield f"# Lines NAME=value for {', '.join(deployment.variables)}; only root needs to read the file."
        yield f"EnvironmentFile={'-' * is_optional}/etc/appliance/{deployment.name}.env"


def _credentials(deployment: Deployment) -> Iterator[str]:
    if deployment.secret_files:
        files = " ".join(map(str, deployment.secret_files.values()))
        yield f"# A group that may read {files}"
        yield f"SupplementaryGroups={deployment.name}"
