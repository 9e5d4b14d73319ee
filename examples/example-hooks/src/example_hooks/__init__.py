"""A log of requests, a route and a command."""
