"""Stored responses, conversations and compactions of OpenAI's Responses API, for every model with such requests."""
