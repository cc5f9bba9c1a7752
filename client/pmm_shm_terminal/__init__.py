"""What programs at a terminal share: arguments, exit codes, and answers as JSON or for people."""
