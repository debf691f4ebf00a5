"""The demo model: road scenes drawn by numpy, a tiny Wan2.1 trained on them, and how well its clips follow their words.

jobs/train_demo.py runs it all. Rendering needs none of these modules, and none of the engine imports them.
"""
