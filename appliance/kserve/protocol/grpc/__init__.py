"""KServe's package of this name."""
