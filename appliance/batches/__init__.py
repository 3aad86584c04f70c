"""Batches: files of requests, run in the background and resumed after a restart."""
