"""What is told of requests to those who run the appliance: counts, the access log, traces, payloads."""
