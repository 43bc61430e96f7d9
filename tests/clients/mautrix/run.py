"""Runs the scenarios with mautrix. usage: run.py --server PATH, and see --help"""

import asyncio
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "shared"))

import outages
import runner
import scenarios
from bridge import Stage

sys.exit(asyncio.run(runner.main("mautrix", Stage, scenarios.ALL, outages.ALL)))
