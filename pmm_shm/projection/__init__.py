"""Moving folds along the log: one cursor, and replay, verification and seals on top of it."""
