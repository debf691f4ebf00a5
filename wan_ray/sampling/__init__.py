"""Noise to latents, for any velocity function: noise levels, two solvers with explicit state, and the loop."""
