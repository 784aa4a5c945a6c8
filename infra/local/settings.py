"""What a stack folder remembers: addresses and secrets, in one env file that only its owner can read."""

from __future__ import annotations

import os
import random
import socket
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

LONGEST_FOLDER = 30
"""Characters. Ray's sockets lie up to 76 characters below the folder, and a Unix socket's path ends at 107."""

PORTS = range(20000, 32000)
"""Above Ray's worker ports (10002-19999), below the ports that the kernel hands to outgoing connections."""


class StackError(Exception):
    """Something that the user can mend; the message says what and how."""


@dataclass
class Settings:
    """The environment variables of one stack. A part is initialised once its variables stand here."""

    folder: Path
    ports: dict[str, int] = field(default_factory=dict)
    """The ports that the user asked for, by variable name of the address."""
    env: dict[str, str] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """Lines NAME=value, mode 0600."""
        return self.folder / "stack.env"

    def load(self) -> None:
        """Reads what an earlier run saved, if any."""
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self.env = dict(line.split("=", 1) for line in lines)

    def save(self, **values: str) -> None:
        """Adds values and writes the file whole (a killed run leaves the old one)."""
        self.env.update(values)
        fresh = self.file.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.writelines(f"{name}={value}\n" for name, value in self.env.items())
        fresh.rename(self.file)

    def chosen(self, *prefixes: str) -> dict[str, str]:
        """The variables whose names begin with one of the prefixes."""
        return {name: value for name, value in self.env.items() if name.startswith(prefixes)}

    def port(self, address: str) -> int:
        """The port of the address variable: the stored one, else the one asked for, else a free one."""
        asked = self.ports.get(address)
        if address not in self.env:
            return asked or free_port()
        stored = urlsplit(self.env[address]).port
        if stored is None or asked not in (None, stored):
            raise StackError(
                f"{self.folder} already keeps {address} on port {stored}, not {asked}: "
                f"leave the port option out, or take another --dir."
            )
        return stored


def free_port() -> int:
    """A TCP port that nothing on the loopback listens on right now."""
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise StackError(f"No port in {PORTS.start}-{PORTS.stop - 1} is free: stop some servers.")


def open_folder(folder: Path) -> Path:
    """Makes the stack folder, or checks that an existing one is ours. Others may pass through it, not list it."""
    folder = folder.absolute()
    if len(str(folder)) > LONGEST_FOLDER:
        raise StackError(f"{folder} is too long: Ray's sockets allow {LONGEST_FOLDER} characters. Take another --dir.")
    folder.mkdir(mode=0o711, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise StackError(f"{folder} belongs to another user: take another --dir.")
    folder.chmod(0o711)
    return folder
