"""Shared by programs at a terminal: arguments, exit codes, and answers as JSON or for people."""
