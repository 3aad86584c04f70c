"""The models that are served: their lifecycle, health and requests."""
