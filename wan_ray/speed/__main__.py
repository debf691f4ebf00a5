"""`python -m wan_ray.speed`: as `wan-ray bench --engine`, for a machine that has torch and not all the rest."""

import argparse
import sys
from pathlib import Path

from wan_ray.speed.report import run_engine_bench
from wan_ray.speed.settings import add_engine_arguments

parser = argparse.ArgumentParser(prog="python -m wan_ray.speed")
parser.add_argument("--json", type=Path, help="also write the figures to this file")
add_engine_arguments(parser)
sys.exit(run_engine_bench(parser.parse_args()))
