"""The engine in process, over the same prompts. Prints `READY`; then, for each number of streams and of a turn that
it reads from standard input, `RESULT` and its figures as JSON."""

from __future__ import annotations

import argparse
import json
import sys


def main() -> None:
    import os

    from core.engine.spinning import spin_briefly

    spin_briefly(os.environ)  # as `core` does
    from bench.over_http.rounds import measure
    from core.bench.offline import OfflineBench
    from core.config.loading import load_settings

    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--input-len", type=int, required=True)
    parser.add_argument("--output-len", type=int, required=True)
    parser.add_argument("--pause-ms", type=float, required=True)
    parser.add_argument("--dtype", required=True)
    args = parser.parse_args()
    given = {"model": args.model, "dtype": args.dtype, "log_interval_s": 0.0}
    settings = load_settings(given, {}, origin="argument").settings
    with OfflineBench(settings) as bench:
        print("READY", flush=True)
        for line in sys.stdin:
            streams, turn = map(int, line.split())
            found = measure(
                bench.run, streams, args.input_len, args.output_len, args.seconds, turn, args.pause_ms / 1e3
            )
            found["cpu_s"] = {"engine": found.pop("own_cpu_s")}
            print("RESULT " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
