"""What Weights & Biases writes offline, read by its own messages."""

import json
import struct
from pathlib import Path

_HEADER, _BLOCK = 7, 32768
_FULL, _LAST = 1, 4  # kinds of pieces that end a record


def records_of(file: Path):
    """Yields the records of a `.wandb` file: pieces in blocks of 32 KiB, as in a log of LevelDB."""
    from wandb.proto import wandb_internal_pb2

    data, position, pieces = file.read_bytes(), _HEADER, b""
    while position + _HEADER <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + _HEADER])
        pieces += data[position + _HEADER : position + _HEADER + length]
        position += _HEADER + length
        if kind in (_FULL, _LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pieces)
            yield record
            pieces = b""


def history_of(file: Path):
    """Returns the ids of the runs in a file, and what was logged, line by line."""
    ids, lines = set(), []
    for record in records_of(file):
        if record.WhichOneof("record_type") == "run":
            ids.add(record.run.run_id)
        if record.WhichOneof("record_type") == "history":
            lines.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item})
    return ids, lines
