"""What a request leaves behind for people: its id, its log lines, its spans.

What lives here: the record of an HTTP request, which the engine's clients fill in; log lines that carry its id and
never hold anybody up; spans, made from the record once the request is over.
What does not: numbers over all requests (core.metrics), the HTTP layer that begins and ends a record (core.server).

No torch. OpenTelemetry is imported by `spans` only, and that only if an operator asks for traces.
"""
