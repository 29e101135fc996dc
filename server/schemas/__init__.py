"""Requests and responses of every route, as pydantic models."""
