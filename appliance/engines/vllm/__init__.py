"""The only room that knows vLLM: its arguments, its start and stop, its answers."""
