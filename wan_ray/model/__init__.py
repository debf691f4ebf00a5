"""Wan2.1 itself: single-device PyTorch, parameter names as released. README.md says which file comes from where."""
