"""What `ray job submit -- python jobs/render.py CONFIG` runs: the same as `wan-ray render CONFIG`."""

import sys

from wan_ray.cli import main

sys.exit(main(["render", *sys.argv[1:]]))
