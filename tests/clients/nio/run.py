"""Runs the scenarios with matrix-nio. usage: run.py --server PATH, and see --help"""

import asyncio
import logging
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "shared"))

import restarts
import runner
import scenarios
from server import Server

logging.getLogger("nio").setLevel(logging.ERROR)  # it warns of what the scenarios provoke
sys.exit(asyncio.run(runner.main("nio", Server, scenarios.ALL, restarts.ALL)))
