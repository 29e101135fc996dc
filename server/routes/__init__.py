"""The routes, a module per API."""
