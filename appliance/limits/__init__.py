"""Limits of models and API keys: queue, rate limits, timeouts, estimates."""
