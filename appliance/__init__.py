"""
Serve models from one YAML file.
"""
