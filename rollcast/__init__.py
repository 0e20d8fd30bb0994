"""rollcast for programs: post entries, follow predictions.

from rollcast import Client

with Client("http://127.0.0.1:8000") as client:
    client.post_frame("cam-1", Path("seven.png").read_bytes())
    for record in client.follow("cam-1", after="0"):
        print(record.body["label"])
"""

from rollcast.client import Client, Problem, ServerAway, StreamRecord

__all__ = ["Client", "Problem", "ServerAway", "StreamRecord"]
