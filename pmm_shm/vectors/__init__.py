"""Vectors: embedders, the text table and the event tables (reading and writing), and the search for the nearest.

Packages outside this one import numpy only when they use vectors: a worker that embeds nothing does not load it.
"""
