"""Runs the scenarios: side by side on one server, those that restart their server each on its own.

usage: run.py --server PATH [--only PART_OF_A_NAME] [--jobs N] [--keep]
"""

import argparse
import asyncio
import logging
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

import restarts
import scenarios
from person import EVERYBODY
from server import Server

SCENARIO_TIMEOUT_S = 180


class Run:
    def __init__(self, options):
        self.options = options
        self.folder = Path(tempfile.mkdtemp(prefix="skerry-nio-"))
        self.lanes = asyncio.Semaphore(options.jobs)
        self.passed = 0
        self.failed = 0

    async def scenario(self, function, server):
        """One scenario with its time and verdict on a line."""
        name = function.__name__
        async with self.lanes:
            started = time.monotonic()
            everybody = []
            EVERYBODY.set(everybody)
            try:
                await asyncio.wait_for(function(server), SCENARIO_TIMEOUT_S)
                verdict, self.passed = "ok", self.passed + 1
            except Exception:
                verdict, self.failed = "FAILED", self.failed + 1
                traceback.print_exc()
            finally:
                await asyncio.gather(*(person.close() for person in everybody))
            print(f"nio {name} ... {verdict} ({time.monotonic() - started:.2f} s)", flush=True)
            return verdict == "ok"

    async def shared(self, functions):
        """Scenarios that get along on one server."""
        if not functions:
            return
        server = Server(self.options.server, self.folder / "shared")
        print(f"nio: server ready after {await server.start():.2f} s", flush=True)
        try:
            results = await asyncio.gather(*(self.scenario(f, server) for f in functions))
        finally:
            await server.stop()
        if not all(results):
            print(f"nio: end of the server's log:\n{server.log_tail()}", flush=True)

    async def alone(self, function):
        """A scenario that stops its server."""
        server = Server(self.options.server, self.folder / function.__name__)
        await server.start()
        try:
            ok = await self.scenario(function, server)
        finally:
            await server.stop()
        if not ok:
            print(f"nio: end of the server's log:\n{server.log_tail()}", flush=True)

    async def everything(self):
        def chosen(module):
            return [f for f in module.ALL if self.options.only in f.__name__]

        await asyncio.gather(self.shared(chosen(scenarios)), *(self.alone(f) for f in chosen(restarts)))


async def main() -> int:
    logging.getLogger("nio").setLevel(logging.ERROR)  # it warns of what the scenarios provoke
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--keep", action="store_true", help="keep the servers' folders")
    run = Run(parser.parse_args())
    started = time.monotonic()
    await run.everything()
    if run.failed or run.options.keep:
        print(f"nio: the servers' folders are in {run.folder}")
    else:
        shutil.rmtree(run.folder)
    print(f"nio: {run.passed} passed, {run.failed} failed in {time.monotonic() - started:.1f} s")
    return 1 if run.failed or not run.passed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
