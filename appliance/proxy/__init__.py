"""The reverse proxy to servers that speak OpenAI's protocol."""
