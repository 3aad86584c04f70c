"""Weights for tests that read no tensor."""

WITHOUT_TENSORS = (2).to_bytes(8, "little") + b"{}"
"""A whole safetensors file; what follows it belongs to no tensor."""
