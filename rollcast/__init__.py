"""rollcast for programs: post entries, follow predictions.

from rollcast import Client

client = Client("http://127.0.0.1:8000")
client.post_frame("cam-1", "seven.png")
for prediction in client.predictions("cam-*", after="0"):
    print(prediction.stream, prediction.rolling.label)
"""

from rollcast.aio import AsyncClient
from rollcast.aio_gateway import AsyncGateway
from rollcast.client import Client
from rollcast.entries import Entry, Logged, frame, samples, text
from rollcast.errors import BadAnswer, Problem, RollcastError, ServerAway
from rollcast.gateway import Gateway
from rollcast.results import (
    Accepted,
    Done,
    Dropped,
    Duplicate,
    Event,
    Gap,
    History,
    Prediction,
    Record,
    Refused,
    Rolling,
)

__all__ = [
    "Accepted",
    "AsyncClient",
    "AsyncGateway",
    "BadAnswer",
    "Client",
    "Done",
    "Dropped",
    "Duplicate",
    "Entry",
    "Event",
    "Gap",
    "Gateway",
    "History",
    "Logged",
    "Prediction",
    "Problem",
    "Record",
    "Refused",
    "RollcastError",
    "Rolling",
    "ServerAway",
    "frame",
    "samples",
    "text",
]
