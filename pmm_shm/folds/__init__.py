"""Folds: how each projection is computed from events. `contract` is what a fold is, `engine` moves folds along the
log.
"""
