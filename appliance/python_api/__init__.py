"""Models that users write in Python: what they subclass, and how one becomes a model of the contract."""
