"""Prompt extension: a short prompt becomes a long one, as the model was trained on, that says the same."""
