"""Streams and state: how many there are, whether they fit, whether they keep what they know, who owns them."""

from deploy.grafana.panels import JOB, RANGE, RATE, Dashboard, Row, lines, of, stat

_RESIDENT = of(where="resident")

STREAMS = Dashboard(
    "rollcast-streams",
    "rollcast: streams and state",
    "How many streams there are, what they remember and where, and whose shards they are.",
    [
        Row(
            "Streams",
            [
                stat("Streams known", "All that the broker knows, counted every 5 s.", f"sum(rollcast_streams{JOB})"),
                stat(
                    "Streams in memory",
                    "Their states are held by workers, at most max_resident_streams each.",
                    f"sum(rollcast_streams{_RESIDENT})",
                ),
                stat("Bytes of states in memory", "What states cost.", f"sum(rollcast_state_bytes{JOB})", unit="bytes"),
                stat(
                    "Bytes of a state",
                    "To plan with: docs/operations.md has the formula.",
                    f"sum(rollcast_state_bytes{JOB}) / (sum(rollcast_streams{_RESIDENT}) > 0) or vector(0)",
                    unit="bytes",
                ),
                stat("Subscriptions", "Open ones, over SSE and WebSockets.", f"sum(rollcast_subscribers{JOB})"),
                stat(
                    "Gaps of slow subscribers",
                    "Records were trimmed before a subscriber read them, in the time shown.",
                    f"round(sum(increase(rollcast_subscriber_drops_total{JOB}{RANGE})))",
                    warn=1, decimals=0,
                ),
                lines(
                    "Streams, in memory and in the broker only",
                    "Those that are not in memory cost a read of their state when they come back.",
                    (f"sum by (where) (rollcast_streams{JOB})", "{{where}}"),
                    stacked=True,
                ),
                lines(
                    "Streams of the deployment",
                    "Idle ones, too. At the limit, max_streams, new ones are answered 429.",
                    (f"max(rollcast_streams_known{JOB})", "streams"),
                    (f"max(rollcast_streams_limit{JOB})", "limit"),
                ),
                lines(
                    "States moved a second",
                    "Evictions as fast as entries: the memory is too small for the streams that take turns.",
                    (f"sum(rate(rollcast_evictions_total{JOB}{RATE}))", "evicted from memory"),
                    (f"sum(rate(rollcast_loads_total{JOB}{RATE}))", "read from the broker"),
                    unit="cps",
                ),
                lines(
                    "Removed by the janitor a second",
                    "Idle streams: their records, later all but settings that were set, then these. Refused entries.",
                    (f"sum by (what) (rate(rollcast_swept_total{JOB}{RATE}))", "{{what}}"),
                    unit="cps",
                ),
            ],
        ),
        Row(
            "What streams forget, and what they miss",
            [
                lines(
                    "States that began anew a second",
                    "first is a new stream; lost must not be: the broker evicted it, or somebody deleted it.",
                    (f"sum by (reason) (rate(rollcast_restarts_total{JOB}{RATE}))", "{{reason}}"),
                    unit="cps",
                ),
                lines(
                    "Streams that fell silent in an event, a second",
                    "Nothing came for idle_exit_s while a label was inside: a control ended it.",
                    (f"sum by (model) (rate(rollcast_silenced_total{JOB}{RATE}))", "{{model}}"),
                    unit="cps",
                ),
                lines(
                    "Entries not stepped a second",
                    "late: their seq was passed; superseded, stale: only the latest counts, and workers are behind.",
                    (f"sum by (reason) (rate(rollcast_dropped_total{JOB}{RATE}))", "{{reason}}"),
                    (f"sum(rate(rollcast_duplicates_total{JOB}{RATE}))", "duplicate"),
                    unit="cps",
                ),
                lines(
                    "Refused a second, by reason",
                    "docs/problems.md explains each. crash: the entry ended its worker.",
                    (f"sum by (reason) (rate(rollcast_dead_total{JOB}{RATE}))", "{{reason}}"),
                    unit="cps",
                ),
            ],
        ),
        Row(
            "Shards",
            [
                lines(
                    "Oldest entry that waits, by shard",
                    "One line above the others: one hot shard, or one that is stuck.",
                    (f"max by (shard) (rollcast_lag_seconds{JOB})", "{{shard}}"),
                    unit="s", warn=5, bad=30,
                ),
                lines(
                    "Entries that wait, by shard",
                    "Is one stream so much louder than the others?",
                    (f"max by (shard) (rollcast_lag_entries{JOB})", "{{shard}}"),
                ),
                lines(
                    "Bytes that wait, by shard",
                    "At backlog_bytes posts to the shard are answered 429.",
                    (f"max by (shard) (rollcast_lag_bytes{JOB})", "{{shard}}"),
                    unit="bytes",
                ),
                lines(
                    "Shards with an owner",
                    "A dip is a worker that died; it lasts lease_s and a second at most.",
                    (f"sum(max by (shard) (rollcast_shard_owned{JOB}))", "owned"),
                    (f"count(max by (shard) (rollcast_shard_owned{JOB}))", "all"),
                ),
                lines(
                    "Shards of each worker",
                    "Is the work shared evenly?",
                    (f"sum by (instance, process) (rollcast_shards_held{JOB})", "{{instance}} {{process}}"),
                    stacked=True,
                ),
                lines(
                    "Shards lost a second",
                    "lease: a worker was paused or too slow; broker: it was away; fenced: a connection was cut.",
                    (f"sum by (reason) (rate(rollcast_shards_lost_total{JOB}{RATE}))", "{{reason}}"),
                    (f"sum(rate(rollcast_fenced_total{JOB}{RATE}))", "commits fenced"),
                    unit="cps",
                ),
            ],
        ),
    ],
)  # fmt: skip
