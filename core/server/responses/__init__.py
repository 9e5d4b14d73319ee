"""/v1/responses: OpenAI's item-shaped protocol over the one event stream.

routes: what is answered. schemas: bodies. items: the conversation in core's shapes. events: the answer in theirs.
store: answers that are kept.
"""
