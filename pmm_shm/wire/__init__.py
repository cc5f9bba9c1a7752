"""Messages between clients and the daemon, and the endpoints that carry them."""
