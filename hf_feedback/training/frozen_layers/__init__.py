"""Layers below everything that trains: without dropout, and computed once for each text."""
