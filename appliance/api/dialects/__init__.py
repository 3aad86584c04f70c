"""Protocols of other servers, as translations to OpenAI requests: one file for each."""
