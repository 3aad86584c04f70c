"""Stored responses and conversations of OpenAI's Responses API, for every model that answers such requests."""
