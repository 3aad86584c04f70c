"""The Open Inference Protocol over REST, versions 1 and 2."""
