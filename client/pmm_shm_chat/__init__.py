"""A chat worker on the shared state: turns that append to the ledger, who answers them, and a terminal for them.

Whatever is remembered stands in the ledger; nothing here keeps state of its own between two turns.
"""
