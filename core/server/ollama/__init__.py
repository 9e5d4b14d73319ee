"""/api/chat, /api/generate and what describes the model: Ollama's protocol over the one event stream.

routes: what is answered. schemas: bodies. convert: their conversation and options in core's shapes. replies: the
answer in theirs, as lines of JSON. cards: the model in theirs.
"""
