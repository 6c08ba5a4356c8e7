"""Measures a candidate against what it would replace, and decides whether it may."""
