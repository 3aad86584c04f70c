"""Deployments of a config: compose, Quadlet, systemd, Kubernetes, Helm and KServe."""
