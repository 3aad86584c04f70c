"""Engines: what computes the answers of a model."""
