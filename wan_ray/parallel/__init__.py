"""Ranks, and how a model is spread over them. The only package that touches torch.distributed and xfuser."""
