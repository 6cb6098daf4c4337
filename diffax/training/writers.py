"""What a run writes as it goes: CLU's metric writers, without TensorFlow, and a plain file of JSON lines.

CLU writes TensorBoard events through a module that imports TensorFlow, a gigabyte for a file format. Where TensorFlow
is absent, a module of the same name backed by tensorboardX takes its place before CLU looks for it; TensorBoard reads
the events either way.
"""

import contextlib
import functools
import importlib.util
import json
import sys
import time
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffax._files import whole

__all__ = ["Log", "create_writer"]

_NAME = "clu.metric_writers.summary_writer"


def create_writer(workdir: str | Path, *, just_logging: bool = False) -> Any:
    """CLU's default writer: scalars to the log, and scalars and images to TensorBoard events in `workdir`, written by a
    thread. With just_logging (processes other than the first) nothing is written to files.
    """
    if importlib.util.find_spec("tensorflow") is None and _NAME not in sys.modules:
        sys.modules[_NAME] = _tensorboardx_module()
    from clu import metric_writers

    return metric_writers.create_default_writer(str(workdir), just_logging=just_logging)


class Log:
    """What is logged, as one JSON object a line: {"step": 100, "time": <unix seconds>, "train/loss": ...}.

    A run that goes on from step `start` takes back the lines after it, and one that a kill tore, and appends. write:
    whether this process does it.
    """

    def __init__(self, path: str | Path, start: int, *, write: bool = True) -> None:
        self._file: Any = None
        if not write:
            return
        path, kept = Path(path), []
        for line in path.read_text().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError, TypeError, KeyError):
                if json.loads(line)["step"] <= start:
                    kept.append(line)
        with whole(path) as partial:
            partial.write_text("".join(f"{line}\n" for line in kept))
        self._file = path.open("a")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line, on disk before this returns."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _tensorboardx_module() -> types.ModuleType:
    class SummaryWriter:  # of the shape of clu's MetricWriter, which cannot be imported before this module exists
        """The part of CLU's interface that diffax writes: scalars, images, texts, histograms, hyper-parameters."""

        def __init__(self, logdir: str) -> None:
            self._logdir = logdir

        @functools.cached_property
        def _writer(self) -> Any:  # with the first event, by CLU's thread: tensorboardX imports PyTorch if it can
            import tensorboardX

            return tensorboardX.SummaryWriter(self._logdir, write_to_disk=True)

        def write_summaries(self, step: int, values: Mapping[str, Any], metadata: Any = None) -> None:
            raise ValueError("raw TensorFlow summaries need TensorFlow: write scalars, images, texts or histograms")

        def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
            for key, value in scalars.items():
                self._writer.add_scalar(key, np.asarray(value).item(), step)

        def write_images(self, step: int, images: Mapping[str, Any]) -> None:
            for key, value in images.items():  # [n, height, width, channels] or one image
                value = np.asarray(value)
                add = self._writer.add_images if value.ndim == 4 else self._writer.add_image
                add(key, value, step, dataformats="NHWC" if value.ndim == 4 else "HWC")

        def write_videos(self, step: int, videos: Mapping[str, Any]) -> None:
            for key, value in videos.items():  # [n, time, height, width, channels]
                self._writer.add_video(key, np.moveaxis(np.asarray(value), -1, 2), step)

        def write_audios(self, step: int, audios: Mapping[str, Any], *, sample_rate: int) -> None:
            for key, value in audios.items():
                self._writer.add_audio(key, np.asarray(value), step, sample_rate)

        def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
            for key, value in texts.items():
                self._writer.add_text(key, value, step)

        def write_histograms(
            self, step: int, arrays: Mapping[str, Any], num_buckets: Mapping[str, int] | None = None
        ) -> None:
            for key, value in arrays.items():
                self._writer.add_histogram(key, np.asarray(value), step, (num_buckets or {}).get(key, 30))

        def write_pointcloud(self, step: int, point_clouds: Mapping[str, Any], **_: Any) -> None:
            raise ValueError("point clouds are not written without TensorFlow")

        def write_hparams(self, hparams: Mapping[str, Any]) -> None:
            self._writer.add_text("hparams", "\n".join(f"    {k} = {v}" for k, v in hparams.items()), 0)

        def flush(self) -> None:
            self._writer.flush()

        def close(self) -> None:
            self._writer.close()

    module = types.ModuleType(_NAME)
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    return module
