"""Runs scenarios: side by side on one server, those that stop their server each on a server of its own.

A stage is what scenarios are given: something that is made of the server's binary and a folder, is started, has the
server's log, and is stopped in the end.
"""

import argparse
import asyncio
import contextvars
import shutil
import tempfile
import time
import traceback
from pathlib import Path

SCENARIO_TIMEOUT_S = 180

# What the scenario under way has opened: functions that close it.
CLOSERS = contextvars.ContextVar("closers")


class Run:
    def __init__(self, name: str, stage, options):
        self.name = name
        self.stage = stage
        self.options = options
        self.folder = Path(tempfile.mkdtemp(prefix=f"skerry-{name}-"))
        self.lanes = asyncio.Semaphore(options.jobs)
        self.passed = 0
        self.failed = 0

    async def scenario(self, function, stage):
        """One scenario with its time and verdict on a line."""
        async with self.lanes:
            started = time.monotonic()
            closers = []
            CLOSERS.set(closers)
            try:
                await asyncio.wait_for(function(stage), SCENARIO_TIMEOUT_S)
                verdict, self.passed = "ok", self.passed + 1
            except Exception:
                verdict, self.failed = "FAILED", self.failed + 1
                traceback.print_exc()
            finally:
                await asyncio.gather(*(close() for close in closers))
            print(f"{self.name} {function.__name__} ... {verdict} ({time.monotonic() - started:.2f} s)", flush=True)
            return verdict == "ok"

    async def on_stage(self, folder: str, functions):
        if not functions:
            return
        stage = self.stage(self.options.server, self.folder / folder)
        await stage.start()
        try:
            results = await asyncio.gather(*(self.scenario(function, stage) for function in functions))
        finally:
            await stage.stop()
        if not all(results):
            print(f"{self.name}: end of the server's log:\n{stage.log_tail()}", flush=True)

    async def everything(self, together, alone):
        def chosen(functions):
            return [f for f in functions if self.options.only in f.__name__]

        alone = (self.on_stage(f.__name__, [f]) for f in chosen(alone))
        await asyncio.gather(self.on_stage("shared", chosen(together)), *alone)


async def main(name: str, stage, together, alone) -> int:
    """The scenarios `together` share a stage; those in `alone` have one each. Returns the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", required=True)
    parser.add_argument("--only", default="", metavar="PART_OF_A_NAME")
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--keep", action="store_true", help="keep the servers' folders")
    run = Run(name, stage, parser.parse_args())
    started = time.monotonic()
    await run.everything(together, alone)
    if run.failed or run.options.keep:
        print(f"{name}: the servers' folders are in {run.folder}")
    else:
        shutil.rmtree(run.folder)
    print(f"{name}: {run.passed} passed, {run.failed} failed in {time.monotonic() - started:.1f} s")
    return 1 if run.failed or not run.passed else 0
