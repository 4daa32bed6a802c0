"""One mp4 by the same ffmpeg with the same options as workers/inference/video/encoder-process.ts, fed while frames come."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

#: ffmpeg's input holds some frames, so that the model does not wait for it. Linux lets anyone ask for a mebibyte.
PIPE_BYTES = 1 << 20
FINISH_TIMEOUT_S = 60


class Encoding:
    def __init__(self, shapes: dict, frames: int):
        self.missing = frames
        handle, name = tempfile.mkstemp(suffix=".mp4", prefix="dream-peer-")
        os.close(handle)
        self.file = Path(name)
        size = f"{shapes['width']}x{shapes['height']}"
        command = [os.environ["FFMPEG_PATH"], "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(shapes["fps"]),
                   "-i", "pipe:0", "-an", "-vcodec", "libx264", "-preset", "veryfast", "-crf", "18", "-pix_fmt", "yuv420p",
                   "-movflags", "+faststart", "-threads", "1", "-y", name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL, pipesize=PIPE_BYTES)

    def write(self, frames: np.ndarray) -> None:
        """uint8 (frames, H, W, 3)."""
        self.process.stdin.write(np.ascontiguousarray(frames).data)
        self.missing -= len(frames)
        if self.missing == 0:
            self.process.stdin.close()  # ffmpeg ends while the batch goes on

    def finish(self) -> bytes:
        if self.missing or self.process.wait(FINISH_TIMEOUT_S) != 0:
            raise RuntimeError(f"ffmpeg could not encode the video ({self.missing} frames missing)")
        return self.file.read_bytes()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.file.unlink(missing_ok=True)
