"""Counts the events that folds and loops look at, by the name of the function: work, not time.

The launcher has nothing to do with this module.
"""

from collections import Counter

looked_at = Counter()


def whole(name, events):
    """A list that will be walked from one end to the other."""
    looked_at[name] += len(events)
    return events


def walked(name, events):
    """Events that are counted one by one, for a walk that may stop."""
    for event in events:
        looked_at[name] += 1
        yield event
