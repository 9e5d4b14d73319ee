"""One loop of stages and the process boundary around it.

`engine` is the loop, `outputs` and `wire_errors` turn what it gives into `messages`, `build` makes one from a
Resolution. `serve` turns the loop behind a channel: `process` (main of the child, with `start` and `lifetime`) over a
socket, `inline_client` over a queue. `client` is the interface of front ends; `base_client` and `streams` are what
`process_client` (with `child`) and `inline_client` share. `offline` drives the loop by plain calls.

What requests mean is decided in `core.scheduler`, how steps are computed in `core.runner`.
"""
