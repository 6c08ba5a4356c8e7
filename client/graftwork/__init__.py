"""Graftwork's client: the wire contract in `graftwork.v1`, clients, and the command line."""
