"""OpenAI's protocol over services that lack it: the model class `adapter`.

LoRA adapters are something else, weights beside those of a generative model: `lora_adapters` of `EngineSpec`.

Functions of this package that handle a request raise `RequestError` if the request is wrong or the target rejects it,
and `GatewayError` if the target does not answer, or not with what it should.
"""
