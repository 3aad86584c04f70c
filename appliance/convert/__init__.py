"""Conversion of other formats into a config: KServe's manifests, command lines of vLLM, LiteLLM's config."""
