"""The shared state of a ledger for assistants that speak the Model Context Protocol (MCP).

The official Python SDK (the extra `mcp`) does the protocol. Only `serving`, `tools`, `calls` and `streams` import it.
"""
