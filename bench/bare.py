"""The ceiling: the same Redis commands with payloads of the same size, packed by hand around ONNX Runtime.

No parsing beyond what the numbers need, no rolling, no checks, no refusals, no metrics, no leases. It relies on
what the benchmark knows of its own entries: every one is a row of one known stream, and no batch holds a stream twice.
"""

from __future__ import annotations

import socket
from pathlib import Path

import hiredis
import numpy as np
import onnxruntime

from bench.model import BenchPackage
from service.keys import ShardKeys

PACK = hiredis.pack_command
XADD = (
    b"*12\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$6\r\nMAXLEN\r\n$1\r\n~\r\n$4\r\n1000\r\n$%d\r\n%b\r\n"
    b"$4\r\ntype\r\n$10\r\nprediction\r\n$4\r\nbody\r\n$%d\r\n%b\r\n$4\r\nprev\r\n$%d\r\n%b\r\n"
)
SET = b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$2\r\nPX\r\n$9\r\n691200000\r\n"


class Line:
    """A socket and a parser."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.reader = hiredis.Reader()

    def reply(self) -> object:
        while (reply := self.reader.gets()) is False:
            self.reader.feed(self.socket.recv(1 << 18))
        return reply


def drain(
    path: str, prefix: str, shards: int, package: BenchPackage, streams: int, entries: int, sizes: tuple[int, int]
) -> None:
    """Answers `entries` single rows. `sizes`: bytes of a record's body and of a state record, as rollcast has them."""
    body_bytes, state_bytes = sizes
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(Path(package.folder / "model.onnx").read_bytes(), options)
    keys = [ShardKeys(prefix, p) for p in range(shards)]
    number = {key.inbox: p for p, key in enumerate(keys)}
    reading, commits = Line(path), [Line(path) for _ in range(shards)]
    heads = [b"life token 0 0-0 0 0"] * shards
    for p, line in enumerate(commits):
        line.socket.sendall(
            PACK(("SET", keys[p].head, heads[p])) + PACK(("WATCH", keys[p].head)) + PACK(("GET", keys[p].head))
        )
        for _ in range(3):
            line.reply()
    h = np.zeros((streams, 1, 64), np.float32)
    c = np.zeros((streams, 1, 64), np.float32)
    slots: dict[bytes, int] = {}
    prev = [b"0-0"] * streams
    cursors = [b"0-0"] * shards
    labels = package.manifest.labels
    count = max(1, streams // shards)
    ask = ("XREAD", "COUNT", count, "BLOCK", 1000, "STREAMS", *(key.inbox for key in keys))
    done, n, in_flight = 0, 0, {}
    reading.socket.sendall(PACK((*ask, *cursors)))
    while done < entries:
        answer = reading.reply() or []
        per_shard = []
        for name, found in answer:  # type: ignore[attr-defined]
            p = number[name]
            cursors[p] = found[-1][0]
            per_shard.append((p, found))
        reading.socket.sendall(PACK((*ask, *cursors)))
        batch = [entry for _, found in per_shard for entry in found]
        places = np.array([slots.setdefault(fields[1], len(slots)) for _, fields in batch])
        x = np.frombuffer(b"".join([fields[7] for _, fields in batch]), "<f4").reshape(len(batch), 1, 6)
        scores, hn, cn = session.run(None, {"x": x, "h": h[places], "c": c[places]})
        h[places], c[places] = hn, cn
        kept = np.zeros((len(batch), state_bytes), np.uint8)
        kept[:, :512] = np.concatenate([hn, cn], axis=2).reshape(len(batch), 128).view(np.uint8)
        states = kept.tobytes()
        rounded = np.round(scores[:, 0].astype(np.float64), 6).tolist()
        best = scores[:, 0].argmax(axis=1).tolist()
        for p, line in in_flight.items():
            for _ in range(line):
                reply = commits[p].reply()
            assert reply == heads[p]
        in_flight.clear()
        n += 1
        at = 0
        for p, found in per_shard:
            key = keys[p]
            low = found[-1][0]
            heads[p] = b"life token %d %b 0 0" % (n, low)
            out = [PACK((b"MULTI",)), PACK((b"SET", key.head, heads[p]))]
            positions, touched, answered = [], [], []
            for entry_id, fields in found:
                stream, row = fields[1], rounded[at]
                slot = slots[stream]
                body = b'{"type":"prediction","id":"%b","stream":"%b","label":"%b","probabilities":%b}' % (
                    entry_id, stream, labels[best[at]].encode(), str(row).encode(),
                )  # fmt: skip
                body, name = body.ljust(body_bytes), key.out_prefix + stream
                out.append(
                    XADD % (len(name), name, len(entry_id), entry_id, len(body), body, len(prev[slot]), prev[slot])
                )
                state, name = states[at * state_bytes : (at + 1) * state_bytes], key.state_prefix + stream
                out.append(SET % (len(name), name, state_bytes, state))
                prev[slot] = entry_id
                positions += [stream, entry_id]
                touched += [entry_id.partition(b"-")[0], stream]
                answered += [stream, entry_id]
                at += 1
            out.append(PACK((b"HSET", key.pos, *positions)))
            out.append(PACK((b"ZADD", key.streams, *touched)))
            feed = b"%d-0" % n, b"token", b"token", b"records", b" ".join(answered)
            out.append(PACK((b"XADD", key.feed, b"MAXLEN", b"~", b"10000", *feed)))
            out += [PACK((b"EXEC",)), PACK((b"WATCH", key.head)), PACK((b"GET", key.head))]
            commits[p].socket.sendall(b"".join(out))
            in_flight[p] = len(out)
        done += len(batch)
    for p, line in in_flight.items():
        for _ in range(line):
            commits[p].reply()
    for line in (reading, *commits):
        line.socket.close()
