"""A chat worker on the shared state: turns that append to the ledger, responders, and a terminal interface.

All memory is in the ledger; nothing here keeps state between two turns.
"""
