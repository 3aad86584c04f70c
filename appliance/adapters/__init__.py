"""OpenAI's protocol over services that lack it.

Functions of this package that handle a request raise `RequestError` if the request is wrong or the target rejects it,
and `GatewayError` if the target does not answer, or not with what it should.
"""
