"""The events that CLU writes are TensorBoard events, read back here from the record format itself."""

import struct

import numpy as np
from tensorboardX.proto import event_pb2

from diffax.training.writers import create_writer


def events(folder):
    for file in sorted(folder.glob("events*")):
        data, at = file.read_bytes(), 0
        while at < len(data):  # uint64 length, uint32 crc, the event, uint32 crc
            (length,) = struct.unpack_from("<Q", data, at)
            yield event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length


def test_scalars_and_images_are_in_the_event_file(tmp_path):
    writer = create_writer(tmp_path)
    writer.write_scalars(7, {"train/loss": 0.25, "train/levels/logsnr_-3_to_0": np.float32(1.5)})
    writer.write_images(7, {"samples": np.zeros((1, 4, 6, 3), np.uint8)})
    writer.write_hparams({"a": 1})
    writer.close()
    values = [(e.step, v) for e in events(tmp_path) for v in e.summary.value]
    scalars = {v.tag: (step, v.simple_value) for step, v in values if v.WhichOneof("value") == "simple_value"}
    assert scalars == {"train/loss": (7, 0.25), "train/levels/logsnr_-3_to_0": (7, 1.5)}
    images = [v.image for _, v in values if v.WhichOneof("value") == "image"]
    assert [(i.height, i.width) for i in images] == [(4, 6)]


def test_other_processes_write_no_files(tmp_path):
    writer = create_writer(tmp_path, just_logging=True)
    writer.write_scalars(1, {"a": 1.0})
    writer.close()
    assert list(tmp_path.iterdir()) == []
