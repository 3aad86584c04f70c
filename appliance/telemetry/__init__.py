"""Telemetry of requests: metrics, access log, traces, payload log."""
