"""`sftp://HOST/path`, through fsspec and paramiko: only hosts whose keys are known are trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from appliance.core.errors import AccessDeniedError, StorageError
from appliance.storage.filesystems.errors import FailedResponse
from appliance.storage.filesystems.store import FilesystemStore

# Where OpenSSH looks, too.
_KNOWN_HOSTS = ("~/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts")


class SftpStore(FilesystemStore):
    """A directory or file of an SSH server; `host_key_policy: auto_add` in the options trusts any host."""

    async def _connect(self) -> Any:  # Any: as in the base class
        # paramiko's own policy would reject every host, because fsspec loads no known ones.
        if self._options.get("host_key_policy", "reject") == "reject":
            self._options = {**self._options, "host_key_policy": _known_hosts_policy()}
        return await super()._connect()

    async def _read_part(self, path: str, start: int, end: int) -> bytes:
        # fsspec's own way waits for each 32 KiB before it asks for the next.
        def read(filesystem: Any) -> bytes:  # Any: as above
            with filesystem.ftp.open(path) as file:
                return b"".join(file.readv([(start, end - start)]))

        return await self._in_thread(read)

    def own_error(self, resource: str, error: BaseException, response: FailedResponse | None) -> StorageError | None:
        from paramiko import BadHostKeyException

        if isinstance(error, BadHostKeyException):
            return AccessDeniedError(f"{resource}: {error}; check whether the server's key was changed")
        return super().own_error(resource, error, response)


def _known_hosts_policy() -> Any:  # Any: paramiko is imported here
    import paramiko

    class KnownHosts(paramiko.MissingHostKeyPolicy):  # type: ignore[misc] # has no types
        """Accepts the keys of OpenSSH's known hosts; fsspec's filesystem does not read them."""

        def missing_host_key(self, _client: Any, hostname: str, key: Any) -> None:  # Any: paramiko's
            for path in map(Path, _KNOWN_HOSTS):
                hosts = paramiko.HostKeys()
                if path.expanduser().exists():
                    hosts.load(str(path.expanduser()))
                if hosts.check(hostname, key):
                    return
            raise AccessDeniedError(
                f"sftp://{hostname}: its host key {key.get_name()} {key.fingerprint} is not known; if it is right, "
                f"add it with: ssh-keyscan, into {_KNOWN_HOSTS[0]}"
            )

    return KnownHosts()
