"""A rank that computes nothing and misbehaves as it is told, in the place of core.engine.rank.

settings: JSON {"rank": which one misbehaves, "how": ..., "at": phase or step number}.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time

import msgspec

from core.engine.rank_messages import Line, Phase, PhaseDone, RankFailed, StartRank, ToRank, read_frame
from core.runner.plan_wire import PlanMessage


def misbehave(how: str, line: Line) -> None:
    if how == "refuses":
        line.send(RankFailed("the sizes do not divide", "ConfigError", "use fewer"))
        sys.exit(3)
    if how == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "leaves":
        sys.exit(7)
    time.sleep(60)  # "hangs", even if its line ends


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    line, stream = Line(connection), connection.makefile("rb")
    start = msgspec.msgpack.decode(read_frame(stream) or b"", type=StartRank)
    told = json.loads(start.settings)
    mine = told.get("rank") == start.rank
    steps: list[int] = []
    decoder = msgspec.msgpack.Decoder(ToRank)
    while (raw := read_frame(stream)) is not None:
        message = decoder.decode(raw)
        if isinstance(message, PlanMessage):
            steps.append(message.step)
            if mine and told["at"] == message.step:
                misbehave(told["how"], line)
        elif isinstance(message, Phase):
            if mine and told["at"] == message.name:
                misbehave(told["how"], line)
            answer = {"pid": os.getpid(), "rank": start.rank, "value": message.value, "steps": len(steps)}
            line.send(PhaseDone(message.name, answer, start.meeting))


if __name__ == "__main__":
    main()
