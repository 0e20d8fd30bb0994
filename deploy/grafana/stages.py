"""Stages and batches: where the time goes between an entry and its record, and whether there is room left."""

from deploy.grafana.panels import JOB, RATE, Dashboard, Row, heatmap, lines, of, quantile

_STAGE = "rollcast_stage_seconds"

STAGES = Dashboard(
    "rollcast-stages",
    "rollcast: stages and batches",
    "Where the time goes: read, decode, queue, step, roll, commit; and how large batches are.",
    [
        Row(
            "Stages",
            [
                lines(
                    "Median time of a stage",
                    "Of one batch; of queue and decode, of one entry. queue rises first when workers are too slow.",
                    (quantile(0.5, _STAGE, "stage"), "{{stage}}"),
                    unit="s",
                ),
                lines(
                    "99 % of a stage take at most",
                    "A slow commit is the broker (disk, network), a slow step the model, a slow decode large frames.",
                    (quantile(0.99, _STAGE, "stage"), "{{stage}}"),
                    unit="s",
                ),
                lines(
                    "Seconds a second in each stage",
                    "Over all workers. step and roll of one worker together cannot pass 1.",
                    (f"sum by (stage) (rate({_STAGE}_sum{of(stage='!queue')}{RATE}))", "{{stage}}"),
                    unit="none", stacked=True,
                ),
                lines(
                    "Commits a second",
                    "One a shard and batch.",
                    (f"sum(rate({_STAGE}_count{of(stage='commit')}{RATE}))", "commits"),
                    unit="cps",
                ),
                lines(
                    "Entries a commit",
                    "Grows with the load: many entries share one answer of the broker.",
                    (
                        f"sum(rate(rollcast_entries_total{JOB}{RATE}))"
                        f" / sum(rate({_STAGE}_count{of(stage='commit')}{RATE}))",
                        "entries",
                    ),
                ),
                lines(
                    "Answer time of the broker",
                    "One small question and back. Slow: its disk, its network, or somebody's long script.",
                    (quantile(0.5, "rollcast_broker_seconds"), "median"),
                    (quantile(0.99, "rollcast_broker_seconds"), "99 %"),
                    unit="s",
                ),
            ],
        ),
        Row(
            "Batches",
            [
                lines(
                    "Entries in a batch, mean",
                    "The batch is what waited while the engine was busy: 1 is idle, batch_entries is full.",
                    (
                        f"sum by (model) (rate(rollcast_batch_entries_sum{JOB}{RATE}))"
                        f" / sum by (model) (rate(rollcast_batch_entries_count{JOB}{RATE}))",
                        "{{model}}",
                    ),
                ),
                lines(
                    "Entries in a batch, 99 %",
                    "At 1,024 it cannot grow any more: add workers.",
                    (quantile(0.99, "rollcast_batch_entries", "model"), "{{model}}"),
                ),
                heatmap("Entries in a batch", "All of them.", "rollcast_batch_entries", "short"),
                lines(
                    "Calls of models a second",
                    "Each is one run of ONNX Runtime for a whole batch.",
                    (f"sum by (model) (rate(rollcast_batch_entries_count{JOB}{RATE}))", "{{model}}"),
                    unit="cps",
                ),
                lines(
                    "Steps a second",
                    "A block of T rows is T steps.",
                    (f"sum by (model) (rate(rollcast_steps_total{JOB}{RATE}))", "{{model}}"),
                    unit="cps",
                ),
                heatmap("From entry to record", "How old answers are.", "rollcast_end_to_end_seconds", "s"),
            ],
        ),
        Row(
            "Calls",
            [
                lines(
                    "Requests a second, by route",
                    "Who calls what?",
                    (f"sum by (route) (rate(rollcast_http_request_seconds_count{JOB}{RATE}))", "{{route}}"),
                    unit="reqps", width=12,
                ),
                lines(
                    "99 % of requests take at most, by route",
                    "Subscriptions count up to their first byte.",
                    (quantile(0.99, "rollcast_http_request_seconds", "route"), "{{route}}"),
                    unit="s", width=12,
                ),
            ],
        ),
    ],
)  # fmt: skip
