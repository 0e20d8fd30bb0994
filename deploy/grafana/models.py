"""Models: which run, what they say, how sure they are, and whether that changes."""

from deploy.grafana.panels import RANGE, RATE, Dashboard, Row, bars, heatmap, lines, of, quantile, stat, table

_M = of(model="$model")
_REFUSED = of(model="$model", type="refused")
_ENTER = of(model="$model", type="enter")

MODELS = Dashboard(
    "rollcast-models",
    "rollcast: models",
    "Which models run, what they say, how sure they are, and whether that changes.",
    [
        Row(
            "What runs",
            [
                table(
                    "Versions",
                    "Which version runs in how many workers? Two versions of one model: an upgrade is half done.",
                    f"count by (model, version, sha256) (rollcast_model_info{_M})",
                    width=12,
                ),
                stat(
                    "Predictions",
                    "In the time shown.",
                    f"round(sum(increase(rollcast_predicted_total{_M}{RANGE})))",
                    decimals=0, width=3,
                ),
                stat(
                    "Steps",
                    "In the time shown; a block of T rows is T of them.",
                    f"round(sum(increase(rollcast_steps_total{_M}{RANGE})))",
                    decimals=0, width=3,
                ),
                stat(
                    "Not finite",
                    "Refused in the time shown: a sensor or the model is broken.",
                    f"round(sum(increase(rollcast_nonfinite_total{_M}{RANGE})))",
                    bad=1, decimals=0, width=3,
                ),
                stat(
                    "Share refused",
                    "Of the entries for these models, in the time shown.",
                    f"sum(increase(rollcast_records_total{_REFUSED}{RANGE}))"
                    f" / (sum(increase(rollcast_records_total{_M}{RANGE})) > 0) or vector(0)",
                    unit="percentunit", warn=0.01, bad=0.1, width=3,
                ),
            ],
        ),
        Row(
            "What they say",
            [
                lines(
                    "Predictions a second",
                    "How much does each work?",
                    (f"sum by (model) (rate(rollcast_predicted_total{_M}{RATE}))", "{{model}}"),
                    unit="cps", stacked=True,
                ),
                lines(
                    "Share of each label",
                    "Does a model still say what it used to say? A share that moves without a reason is drift.",
                    (
                        f"sum by (model, label) (rate(rollcast_predicted_total{_M}{RATE}))"
                        f" / on (model) group_left () (sum by (model) (rate(rollcast_predicted_total{_M}{RATE})) > 0)",
                        "{{model}} {{label}}",
                    ),
                    unit="percentunit", stacked=True,
                ),
                bars(
                    "Predictions of each label",
                    "In the time shown.",
                    f"sort_desc(round(sum by (model, label) (increase(rollcast_predicted_total{_M}{RANGE}))) > 0)",
                    "{{model}} {{label}}",
                    decimals=0,
                ),
                lines(
                    "Events a second",
                    "enter and exit of labels, decided by the rolling automaton. Many: the thresholds are too close.",
                    (f"sum by (model, type) (rate(rollcast_events_total{_M}{RATE}))", "{{model}} {{type}}"),
                    unit="cps",
                ),
                bars(
                    "Events of each label",
                    "enter, in the time shown.",
                    "sort_desc(round(sum by (model, label) (increase("
                    f"rollcast_events_total{_ENTER}{RANGE}))))",
                    "{{model}} {{label}}",
                    decimals=0,
                ),
                lines(
                    "States that began anew a second",
                    "Of these models. version: a state of another schema was left behind.",
                    (f"sum by (reason) (rate(rollcast_restarts_total{_M}{RATE}))", "{{reason}}"),
                    unit="cps",
                ),
            ],
        ),
        Row(
            "How sure they are",
            [
                lines(
                    "Score of the predicted label, mean",
                    "Is a model still as sure as it was? A fall is drift, or a camera that moved.",
                    (
                        f"sum by (model) (rate(rollcast_confidence_sum{_M}{RATE}))"
                        f" / sum by (model) (rate(rollcast_confidence_count{_M}{RATE}))",
                        "{{model}}",
                    ),
                    unit="percentunit", most=1,
                ),
                lines(
                    "Score of the predicted label, lowest tenth",
                    "A tenth of the predictions is less sure than this.",
                    (quantile(0.1, "rollcast_confidence", "model", _M), "{{model}}"),
                    unit="percentunit", most=1,
                ),
                heatmap("Scores", "All of them.", "rollcast_confidence", "percentunit", _M),
            ],
        ),
        Row(
            "How fast they are",
            [
                lines(
                    "From entry to record, 99 %",
                    "By model.",
                    (quantile(0.99, "rollcast_end_to_end_seconds", "model", _M), "{{model}}"),
                    unit="s", width=12,
                ),
                lines(
                    "Steps a second",
                    "By model.",
                    (f"sum by (model) (rate(rollcast_steps_total{_M}{RATE}))", "{{model}}"),
                    unit="cps", width=12,
                ),
            ],
        ),
    ],
)  # fmt: skip
