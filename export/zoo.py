"""The tasks of the zoo, by the name of their package: what is trained on what, and how."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export import tasks
from export.data import arem, mnist
from export.motion import WatchTask
from export.sequences import SequenceTask, TextTask
from export.signals import CWRU_BLOCK, CWRU_HZ, UTD_FEATURES, cwru, cwru_load, utd_depth, utd_inertial
from export.tasks import AREM_COLUMNS, FrameTask, RowTask, Task
from export.texts import sst2, trec
from models.catalogue import RECURRENT
from service.contracts import GapPolicy, RollingSettings

ROW_FAMILIES = (*RECURRENT, "cnn1d")
CELLS = {"lstm": "an LSTM", "gru": "a GRU", "rnn": "a SimpleRNN", "cnn1d": "a causal CNN over words"}

# --- digits ------------------------------------------------------------------------------------------------------

DIGITS_MLP = FrameTask(
    name="digits-mlp",
    goal=0.983,
    load=mnist,
    description="Handwritten digits by a dense net: 784 pixels, 512 neurons with ReLU, 10 labels.",
    unit="a test image",
    weights_terms="Apache-2.0; trained on MNIST (CC BY-SA 3.0, as usually given)",
    limits="White strokes on black, one centred digit an image. It knows nothing of shifts: keep the digit centred.",
    epochs=30,
    batch=256,
    learning_rate=2e-3,
    weight_decay=0.05,
    smoothing=0.05,
    average=0.998,
    rotation=8,
    zoom=0.08,
    shear=0.08,
    shift=1.5,
    rolling=RollingSettings(half_life_s=0.3, enter=0.7, exit=0.4, dwell_s=0.2, update_s=1.0),
)

# --- activity: AReM ----------------------------------------------------------------------------------------------

ACTIVITY: dict[str, Any] = {
    "goal": 0.96,
    "load": arem,
    "description": "What a person does, from the signal strength between three radios on chest and ankles.",
    "unit": "6 s of a test recording (rows 24, 48, …, 480), seen as a stream",
    "weights_terms": "Apache-2.0; trained on AReM (CC BY 4.0)",
    "limits": "One person, one room, one set of radios. Sitting and standing look alike to these sensors.",
    "hz": 4.0,
    "columns": AREM_COLUMNS,
    "every": 24,
    "epochs": 80,
    "batch": 32,
    "rounds": 10,
    "learning_rate": 5e-3,
    "weight_decay": 0.1,
    "smoothing": 0.05,
    "average": 0.98,
    "folds": 5,
    "shortest": 64,
    "longest": 256,
    "noise": 0.3,
    "scale": 0.1,
    "rolling": RollingSettings(half_life_s=4.0, enter=0.6, exit=0.35, dwell_s=2.0, update_s=10.0),
    "gap": GapPolicy("reset", 30.0),
}

# --- gesture: UTD-MHAD, inertial ---------------------------------------------------------------------------------

GESTURE: dict[str, Any] = {
    "goal": 0.88,
    "load": utd_inertial,
    "description": "27 actions from an accelerometer and a gyroscope on wrist or thigh: what the whole movement says.",
    "unit": "a recording's last row",
    "weights_terms": "free for research, as the data; trained on UTD-MHAD: cite Chen, Jafari, Kehtarnavaz, ICIP 2015",
    "limits": "One action a stream, begun from rest; four people learnt from. Leg actions were worn on the thigh.",
    "hz": 50.0,
    "columns": UTD_FEATURES,
    "folds": 4,
    "epochs": 24,
    "batch": 32,
    "learning_rate": 5e-3,
    "weight_decay": 0.1,
    "smoothing": 0.1,
    "average": 0.98,
    "noise": 0.05,
    "scale": 0.1,
    "speed": 0.2,
    "sway": 0.3,
    "crop": 0.1,
    "turn": 25.0,
    "synthetic": True,
    "rolling": RollingSettings(half_life_s=0.3, enter=0.6, exit=0.4, dwell_s=0.2, update_s=1.0),
    "gap": GapPolicy("reset", 2.0),
}

GESTURE_ROCKET: dict[str, Any] = {
    "description": "27 actions from accelerometer and gyroscope on wrist or thigh: short patterns, every row a vote.",
    "limits": f"{GESTURE['limits']} This recipe is the best of about 25 tried on the same four people: expect a point "
    "or two less of others.",
    "epochs": 1,
    "noise": 0.02,
    "copies": 6,
    "thin": 2,
}

# --- action: UTD-MHAD, depth video -------------------------------------------------------------------------------

ACTION: dict[str, Any] = {
    "goal": 0.75,
    "load": utd_depth,
    "unit": "a clip's last frame",
    "weights_terms": "free for research, as the data; trained on UTD-MHAD: cite Chen, Jafari, Kehtarnavaz, ICIP 2015",
    "limits": "One person in view, background removed, one action a stream, begun from rest; four people learnt from.",
    "hz": 30.0,
    "folds": 4,
    "epochs": 30,
    "batch": 32,
    "learning_rate": 2e-3,
    "weight_decay": 0.1,
    "smoothing": 0.1,
    "average": 0.98,
    "rotation": 5,
    "shear": 0.08,
    "zoom": 0.1,
    "shift": 0.75,
    "nearer": 0.012,
    "cut": 0.1,
    "rolling": RollingSettings(half_life_s=0.3, enter=0.6, exit=0.4, dwell_s=0.2, update_s=1.0),
    "gap": GapPolicy("reset", 2.0),
}
ACTION_MOTION: dict[str, Any] = ACTION | {
    "description": "27 actions in depth video: three views of a person, what moved in them and when, read by a CNN.",
    "copies": 12,
    "limits": f"{ACTION['limits']} It says what a whole action was; in the middle of one it guesses. Its recipe was "
    "taken of 76 settings of a linear reader and eight nets with their figures on these same four people in sight, "
    "which flatters its own a little.",
}
ACTION_DEPTH = ACTION | {"copies": 4, "epochs": 15, "batch": 16, "learning_rate": 3e-3}  # they go through all frames
ACTION_NETS = {
    "action-frame": "27 actions in depth video, each frame by itself: what a net without memory can see.",
    "action-cnn-lstm": "27 actions in depth video: a CNN looks at each frame, an LSTM remembers.",
    "action-cnn-gru": "27 actions in depth video: a CNN looks at each frame, a GRU remembers.",
    "action-cnn-rnn": "27 actions in depth video: a CNN looks at each frame, a SimpleRNN remembers.",
}

# --- bearing: CWRU -----------------------------------------------------------------------------------------------

BEARING: dict[str, Any] = {
    "goal": 0.995,
    "load": cwru,
    "description": "Ten states of a motor's bearing from its vibration: a row is a block of 96 raw samples at 12 kHz.",
    "unit": "1 s of a test recording, seen as a stream",
    "weights_terms": "for research and teaching: trained on CWRU's public recordings, which state no licence",
    "limits": "One test rig, faults made by spark erosion. Real faults grow, and sound different on another machine.",
    "hz": CWRU_HZ / CWRU_BLOCK,
    "columns": [f"s{i:02d}" for i in range(CWRU_BLOCK)],
    "every": CWRU_HZ // CWRU_BLOCK,
    "epochs": 20,
    "batch": 32,
    "rounds": 20,
    "learning_rate": 4e-3,
    "weight_decay": 0.05,
    "smoothing": 0.05,
    "average": 0.98,
    "patience": 8,
    "shortest": 32,
    "longest": 128,
    "skipped": 4,
    "noise": 0.05,
    "scale": 0.0,
    "synthetic": True,
    "rolling": RollingSettings(half_life_s=0.25, enter=0.7, exit=0.4, dwell_s=0.25, update_s=5.0),
    "gap": GapPolicy("reset", 0.5),
}

# --- text --------------------------------------------------------------------------------------------------------

SENTIMENT: dict[str, Any] = {
    "version": 2,  # 1 knew a text as a treebank writes it, and no other
    "goal": 0.81,
    "load": sst2,
    "unit": "a sentence's last word",
    "weights_terms": "Apache-2.0; trained on SST-2 sentences (Socher et al. 2013), from an MIT-licensed repository",
    "limits": "English film reviews of around 2005, a sentence at a time. Irony and other subjects are beyond it.",
    "epochs": 8,
    "batch": 64,
    "learning_rate": 4e-3,
    "weight_decay": 0.1,
    "average": 0.99,
    "patience": 8,
    "forget": 0.2,
    "rolling": RollingSettings(half_life_s=0.0, enter=0.7, exit=0.4),
    "gap": GapPolicy("carry", 60.0),
}
SENTIMENT_TEXT = "Is a sentence of a film review negative or positive? Embeddings, {}, one sigmoid neuron."
QUESTION: dict[str, Any] = SENTIMENT | {
    "goal": 0.88,
    "load": trec,
    "unit": "a question's last word",
    "weights_terms": "Apache-2.0; trained on TREC questions (Li and Roth 2002), from an MIT-licensed repository",
    "limits": "English questions in one sentence. What is no question gets a label, too.",
    "epochs": 12,
    "patience": 12,
    "smoothing": 0.05,
}
QUESTION_TEXT = "What does an English question ask for? Embeddings, {} and a softmax over six labels."

TASKS: dict[str, Task] = tasks.TASKS | {
    task.name: task
    for task in (
        DIGITS_MLP,
        *(RowTask(name=f"activity-{family}", **ACTIVITY) for family in ("gru", "rnn", "cnn1d")),
        *(SequenceTask(name=f"gesture-{family}", **GESTURE) for family in ROW_FAMILIES),
        SequenceTask(name="gesture-rocket", **GESTURE | GESTURE_ROCKET),
        WatchTask(name="action-motion", **ACTION_MOTION),
        *(WatchTask(name=name, description=text, **ACTION_DEPTH) for name, text in ACTION_NETS.items()),
        *(RowTask(name=f"bearing-{family}", **BEARING) for family in ROW_FAMILIES),
        *(
            TextTask(name=f"{name}-{family}", description=text.format(CELLS[family]), **recipe)
            for name, text, recipe in (("sentiment", SENTIMENT_TEXT, SENTIMENT), ("question", QUESTION_TEXT, QUESTION))
            for family in ROW_FAMILIES
        ),
    )
}

# The packages kept: of each of these the best by validation, of several that it cannot tell apart the first.
ZOO: dict[str, tuple[str, ...]] = {
    "digits-cnn": ("digits-cnn",),
    "digits-mlp": ("digits-mlp",),
    "activity": tuple(f"activity-{family}" for family in ROW_FAMILIES),
    "gesture": ("gesture-rocket", *(f"gesture-{family}" for family in ROW_FAMILIES)),
    "action": ("action-motion", *ACTION_NETS),
    "bearing": tuple(f"bearing-{family}" for family in ROW_FAMILIES),
    "sentiment": tuple(f"sentiment-{family}" for family in ROW_FAMILIES),
    "question": tuple(f"question-{family}" for family in ROW_FAMILIES),
}

# Measured, never packaged into the zoo. The same bearing nets learnt without load and tested under load:
OTHER_LOAD: dict[str, Task] = {
    f"load-{family}": replace(TASKS[f"bearing-{family}"], load=cwru_load, goal=0.95) for family in ROW_FAMILIES
}
# the digits' nets in a short course, so that three seeds take minutes, not an hour; and the same without augmentation,
# which tells what a shift means to each of them.
SHORT: dict[str, Task] = {f"short-{name}": replace(TASKS[f"digits-{name}"], epochs=6) for name in ("mlp", "cnn")}
PLAIN: dict[str, Task] = {
    f"plain-{name}": replace(TASKS[f"digits-{name}"], rotation=0.0, zoom=0.0, shear=0.0, shift=0.0, epochs=3)
    for name in ("mlp", "cnn")
}
