"""Hiera for video (arXiv 2306.00989)."""

__version__ = "0.1.0"
