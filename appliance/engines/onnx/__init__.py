"""Encoders that ONNX Runtime computes on the CPU."""
