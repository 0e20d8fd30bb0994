"""Is it well? The first page at three in the morning: every number that is red here has an alert."""

from deploy.grafana.panels import JOB, RANGE, RATE, Dashboard, Row, lines, of, quantile, stat, table

_MEMORY = (
    f"max(rollcast_broker_memory_bytes{JOB})"
    f" / max((rollcast_broker_memory_limit_bytes{JOB} > 0) or rollcast_broker_system_memory_bytes{JOB})"
)
_FIRING = 'ALERTS{alertname=~"Rollcast.+",alertstate="firing"}'
_PROCESS = "{{instance}} {{process}}"

OVERVIEW = Dashboard(
    "rollcast-overview",
    "rollcast: overview",
    "Is it well? What comes in, what is answered, what waits, and what went wrong.",
    [
        Row(
            "Is it well?",
            [
                stat(
                    "Alerts",
                    "How many fire? Below is which; each has a runbook in docs/operations.md.",
                    f"count({_FIRING}) or vector(0)",
                    bad=1, width=2,
                ),
                stat(
                    "Broker",
                    "Does the broker answer the api? If not, nothing is taken and nothing is answered, and nothing is "
                    "lost. `rollcast doctor` says more.",
                    f"min(rollcast_broker_up{JOB})",
                    words={"0": "away", "1": "answers"}, bad=1, below=True, width=2,
                ),
                stat(
                    "Live workers",
                    "How many tell the broker that they live? None: entries wait.",
                    f"max(rollcast_workers_live{JOB})",
                    bad=1, below=True, width=2,
                ),
                stat(
                    "Shards without an owner",
                    "Entries of their streams wait. A dead worker's are taken over within lease_s and a second.",
                    f"count(max by (shard) (rollcast_shard_owned{JOB}) == 0) or vector(0)",
                    bad=1, width=3,
                ),
                stat(
                    "Oldest entry that waits",
                    "How far behind is the slowest shard?",
                    f"max(rollcast_lag_seconds{JOB})",
                    unit="s", warn=5, bad=30, width=3,
                ),
                stat(
                    "Entries without a record",
                    "Entries minus records: 0, or something else writes under the same prefix.",
                    f"sum(rollcast_entries_total{JOB}) - sum(rollcast_records_total{JOB})",
                    bad=1, width=3,
                ),
                stat(
                    "States lost",
                    "States that the broker evicted or lost, in the time shown. See the broker's dashboard.",
                    f"round(sum(increase(rollcast_restarts_total{of(reason='lost')}{RANGE})))",
                    bad=1, decimals=0, width=3,
                ),
                stat(
                    "Refused entries",
                    "Put into quarantine in the time shown: `rollcast dead list`.",
                    f"round(sum(increase(rollcast_dead_total{JOB}{RANGE})))",
                    warn=1, decimals=0, width=3,
                ),
                stat(
                    "Broker memory",
                    "Of its limit, or of its machine where it has none. From 85 % on posts are answered 503.",
                    _MEMORY,
                    unit="percentunit", warn=0.7, bad=0.85, width=3,
                ),
            ],
        ),
        Row(
            "What comes and goes",
            [
                lines(
                    "Entries answered a second",
                    "How much is done?",
                    (f"sum by (kind) (rate(rollcast_entries_total{JOB}{RATE}))", "{{kind}}"),
                    unit="cps", stacked=True,
                ),
                lines(
                    "Records a second",
                    "What became of the entries? Anything but predictions and controls deserves a look.",
                    (f"sum by (type) (rate(rollcast_records_total{JOB}{RATE}))", "{{type}}"),
                    unit="cps", stacked=True,
                ),
                lines(
                    "From entry to record",
                    "How old is an answer when it is committed?",
                    (quantile(0.5, "rollcast_end_to_end_seconds"), "median"),
                    (quantile(0.95, "rollcast_end_to_end_seconds"), "95 %"),
                    (quantile(0.99, "rollcast_end_to_end_seconds"), "99 %"),
                    unit="s", warn=0.5,
                ),
                lines(
                    "Entries that wait",
                    "Unfinished entries in the log. Growing: more comes than is stepped.",
                    (f"sum(max by (shard) (rollcast_lag_entries{JOB}))", "entries"),
                ),
                lines(
                    "Oldest entry that waits, worst shard",
                    "Rising in a straight line: the shard is stuck. See its owner's log.",
                    (f"max(rollcast_lag_seconds{JOB})", "seconds"),
                    unit="s", warn=5, bad=30,
                ),
                lines(
                    "Turned away a second",
                    "Entries that producers have to post again: backlog_full is overload, broker_full memory.",
                    (f"sum by (reason) (rate(rollcast_turned_away_total{JOB}{RATE}))", "{{reason}}"),
                    unit="cps",
                ),
            ],
        ),
        Row(
            "At the door",
            [
                lines(
                    "Requests a second, by status",
                    "4xx is the callers' doing, 5xx ours or the broker's; 429 and 503 ask them to come back.",
                    (f"sum by (status) (rate(rollcast_http_request_seconds_count{JOB}{RATE}))", "{{status}}"),
                    unit="reqps", stacked=True,
                ),
                lines(
                    "Requests and connections refused a second",
                    "Slow, too large, too many, or from a foreign page: a client floods the api, or a name is missing.",
                    (f"sum by (reason) (rate(rollcast_requests_refused_total{JOB}{RATE}))", "{{reason}}"),
                    unit="cps",
                ),
                lines(
                    "Problems told a second, by type",
                    "What clients are told instead of an answer; docs/problems.md explains each.",
                    (f"sum by (way, type) (rate(rollcast_problems_total{JOB}{RATE}))", "{{type}} ({{way}})"),
                    unit="cps",
                ),
                lines(
                    "Connections",
                    "At max_connections those that wait longest make room.",
                    (f"sum by (instance) (rollcast_connections{JOB})", "{{instance}}"),
                ),
                lines(
                    "Bytes of bodies and messages that are not complete",
                    "At max_unfinished_bytes the oldest make room. High for long: slow clients, or a flood.",
                    (f"sum by (instance) (rollcast_unfinished_bytes{JOB})", "{{instance}}"),
                    unit="bytes",
                ),
                lines(
                    "Answer time of requests",
                    "With `wait` it includes the wait for the prediction.",
                    (quantile(0.5, "rollcast_http_request_seconds"), "median"),
                    (quantile(0.99, "rollcast_http_request_seconds"), "99 %"),
                    unit="s",
                ),
                lines(
                    "Subscriptions",
                    "Who listens?",
                    (f"sum by (transport) (rollcast_subscribers{JOB})", "{{transport}}"),
                    stacked=True,
                ),
            ],
        ),
        Row(
            "Processes",
            [
                lines(
                    "Alerts that fire",
                    "Which, and since when?",
                    (f"sum by (alertname, severity) ({_FIRING})", "{{alertname}} ({{severity}})"),
                    stacked=True, width=6,
                ),
                lines(
                    "CPU of processes",
                    "A worker steps on one thread: near 1 (frames: above) it is the limit, add workers.",
                    (f"sum by (instance, process) (rate(process_cpu_seconds_total{JOB}{RATE}))", _PROCESS),
                    unit="none", width=6,
                ),
                lines(
                    "Memory of processes",
                    "Grows with resident streams up to max_resident_streams, then stays.",
                    (f"sum by (instance, process) (process_resident_memory_bytes{JOB})", _PROCESS),
                    unit="bytes", width=6,
                ),
                table(
                    "Versions",
                    "Is every process of one version? The number of processes of each.",
                    f"count by (version) (rollcast_build_info{JOB})",
                    width=6,
                ),
            ],
        ),
    ],
)  # fmt: skip
