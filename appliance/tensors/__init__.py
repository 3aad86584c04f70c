"""Tensors of the Open Inference Protocol: datatypes, shapes, bytes, and requests and responses made of them."""
