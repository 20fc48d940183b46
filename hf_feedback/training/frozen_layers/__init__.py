"""Frozen layers below all trained parameters: run without dropout, and cached on request."""
