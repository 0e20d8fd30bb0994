"""The broker: whether states are safe in it, whether it has room, whether it is fast."""

from deploy.grafana.panels import JOB, RANGE, RATE, Dashboard, Row, lines, of, quantile, stat

_YES_NO = {"0": "no", "1": "yes"}

BROKER = Dashboard(
    "rollcast-broker",
    "rollcast: broker",
    "Whether states are safe in the broker, whether it has room, and whether it is fast. As api processes measure it.",
    [
        Row(
            "Is it safe?",
            [
                stat(
                    "Answers",
                    "While it does not, all other numbers here are the last that were measured.",
                    f"min(rollcast_broker_up{JOB})",
                    words=_YES_NO, bad=1, below=True, width=3,
                ),
                stat(
                    "Never evicts",
                    "maxmemory-policy noeviction. Else it drops states as it fills.",
                    f"min(rollcast_broker_noeviction{JOB})",
                    words=_YES_NO, bad=1, below=True, width=3,
                ),
                stat(
                    "Append-only file",
                    "Without it a restart of the broker loses entries and states.",
                    f"min(rollcast_broker_aof_enabled{JOB})",
                    words=_YES_NO, bad=1, below=True, width=3,
                ),
                stat(
                    "Writes to its disk",
                    "0 after a write of its file or a snapshot failed: the disk is full, or the folder not writable.",
                    f"min(rollcast_broker_disk_ok{JOB})",
                    words={"0": "fail", "1": "work"}, bad=1, below=True, width=3,
                ),
                stat(
                    "Keys evicted",
                    "In the time shown. Each may have been a state.",
                    f"round(max(increase(rollcast_broker_evicted_total{JOB}{RANGE})))",
                    bad=1, decimals=0, width=3,
                ),
                stat(
                    "Memory",
                    "As it counts for its limit.",
                    f"max(rollcast_broker_memory_bytes{JOB})",
                    unit="bytes", width=3,
                ),
                stat(
                    "Limit",
                    "maxmemory; 0: none, and the machine's end is its end.",
                    f"max(rollcast_broker_memory_limit_bytes{JOB})",
                    unit="bytes", words={"0": "none"}, width=3,
                ),
                stat("Connections", "Of all clients.", f"max(rollcast_broker_clients{JOB})", width=3),
            ],
        ),
        Row(
            "Has it room?",
            [
                lines(
                    "Memory",
                    "From 85 % of the limit on posts are answered 503; workers go on, and free what they finish.",
                    (f"max(rollcast_broker_memory_bytes{JOB})", "used"),
                    (f"max(rollcast_broker_memory_limit_bytes{JOB})", "limit"),
                    unit="bytes",
                ),
                lines(
                    "Bytes that wait in the log",
                    "What unfinished entries take of it.",
                    (f"sum(max by (shard) (rollcast_lag_bytes{JOB}))", "bytes"),
                    unit="bytes",
                ),
                lines(
                    "Quarantine that overflowed a second",
                    "Refused entries that left because there were too many: dead_kept, dead_share, dead_bytes.",
                    (f"sum(rate(rollcast_dead_overflow_total{JOB}{RATE}))", "entries"),
                    unit="cps",
                ),
                lines(
                    "Entries lost to trimming a second",
                    "They left the log before they were answered: a producer adds with MAXLEN.",
                    (f"sum(rate(rollcast_entries_trimmed_total{JOB}{RATE}))", "entries"),
                    unit="cps",
                ),
            ],
        ),
        Row(
            "Is it fast?",
            [
                lines(
                    "Answer time",
                    "One small question and back, once a second.",
                    (quantile(0.5, "rollcast_broker_seconds"), "median"),
                    (quantile(0.99, "rollcast_broker_seconds"), "99 %"),
                    unit="s",
                ),
                lines(
                    "Time of a commit",
                    "From sending it to its checked reply. With appendfsync always it includes the disk.",
                    (quantile(0.5, "rollcast_stage_seconds", selector=of(stage="commit")), "median"),
                    (quantile(0.99, "rollcast_stage_seconds", selector=of(stage="commit")), "99 %"),
                    unit="s",
                ),
                lines(
                    "Commands a second",
                    "Of all clients. A step back is a restart of the broker.",
                    (f"max(rate(rollcast_broker_commands_total{JOB}{RATE}))", "commands"),
                    unit="cps",
                ),
                lines(
                    "Commits that went wrong a second",
                    "Refused: memory or disk, or a foreign write to our keys. Fenced: lost shards or connections.",
                    (f"sum(rate(rollcast_commit_errors_total{JOB}{RATE}))", "refused"),
                    (f"sum(rate(rollcast_fenced_total{JOB}{RATE}))", "fenced"),
                    unit="cps",
                ),
                lines(
                    "Entries appended a second",
                    "By api processes; producers that write to the broker themselves are not among them.",
                    (f"sum(rate(rollcast_appended_total{JOB}{RATE}))", "entries"),
                    unit="cps",
                ),
                lines(
                    "Connections",
                    "A line that only rises: somebody leaks them.",
                    (f"max(rollcast_broker_clients{JOB})", "connections"),
                ),
            ],
        ),
    ],
)  # fmt: skip
