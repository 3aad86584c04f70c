"""Models written in Python.

What runs code of a user raises `UserCodeError` if that code raises, `InvalidResultError` if its result is not a
response, and `LoadError` if its class cannot be loaded; `GatewayError` if the response of another model is not one.
"""
