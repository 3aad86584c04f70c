"""Models written in Python.

What runs code of a user raises `UserCodeError` if that code raises, and `InvalidResultError` if its result is not a
response; `GatewayError` if the response of another model is not one.
"""
