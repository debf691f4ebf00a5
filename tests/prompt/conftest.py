"""Rows that ask for a rewrite, and a server to ask."""

from asking import item_of, section_of, server, stage_of

__all__ = ["item_of", "section_of", "server", "stage_of"]
