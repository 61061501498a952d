"""Tunemill: the generative-AI project lifecycle as one reproducible pipeline.

The library is pure: one subject of the field per file, no work at import time. Stages (`stages/`) say what happens,
flows (`flows/`) say when, this package says how.
"""
