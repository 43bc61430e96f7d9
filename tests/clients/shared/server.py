"""A server under test: the real binary on a data folder of its own, started, stopped and killed by process id."""

import asyncio
import os
import signal
import socket
import time
from pathlib import Path

CONFIG = Path(__file__).parents[2] / "server.toml"
READY_TIMEOUT_S = 60


def free_port() -> int:
    """A port that was free a moment ago. Fixed, not 0: clients must find a restarted server where it was."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    def __init__(self, binary: str, folder: Path, more_settings: str = ""):
        self.binary = binary
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None
        folder.mkdir(parents=True, exist_ok=True)
        template = CONFIG.read_text()
        data = str(folder / "data")
        settings = template.replace("{port}", str(self.port)).replace("{data}", data)
        (folder / "config.toml").write_text(settings + more_settings)

    async def start(self) -> float:
        """Starts the server and waits until it listens; returns how long that took, in seconds."""
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        started = time.monotonic()
        with open(self.folder / "server.log", "ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                self.binary, "serve", "--config", str(self.folder / "config.toml"), "--ready-file", str(ready),
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        while not ready.exists():
            if self.process.returncode is not None:
                raise RuntimeError(f"the server exited with {self.process.returncode}\n{self.log_tail()}")
            if time.monotonic() - started > READY_TIMEOUT_S:
                raise RuntimeError(f"the server is not ready after {READY_TIMEOUT_S} s\n{self.log_tail()}")
            await asyncio.sleep(0.005)
        return time.monotonic() - started

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Sends the signal and waits for the end; returns the exit code."""
        if self.process.returncode is None:
            self.process.send_signal(how)
        return await asyncio.wait_for(self.process.wait(), 30)

    def log_tail(self, lines: int = 40) -> str:
        log = self.folder / "server.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        return os.linesep.join(text.splitlines()[-lines:])
