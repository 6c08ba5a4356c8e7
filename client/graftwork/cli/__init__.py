"""The `graftwork` command."""

from graftwork.cli.group import main

__all__ = ["main"]
