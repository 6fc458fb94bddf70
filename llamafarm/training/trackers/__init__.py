"""Where a run's metrics go beside `metrics.jsonl`: one file for each tracker, and their table in `open`.

`base` says what a tracker is. Nothing is sent that was not asked for: each writes on this machine, unless its
own variables or a login of its own say where else.
"""
