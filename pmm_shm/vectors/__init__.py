"""Texts as vectors: the embedders, and which events get a vector of which text.

numpy is imported where vectors are, not by the packages that come before them: a worker that embeds nothing does not
load it.
"""
