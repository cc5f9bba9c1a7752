"""The index of words: which events hold a word, an identifier or a phrase, in SQLite's FTS5."""
