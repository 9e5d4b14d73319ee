"""/v1/messages and /v1/messages/count_tokens: Anthropic's protocol over the one event stream.

routes: what is answered. schemas: bodies. convert: their conversation in core's shapes. events: the answer in theirs.
"""
