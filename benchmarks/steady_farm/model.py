"""A Python model for Triton with the contract of track finding, whose faults can be switched on.

Each hit gets a label that follows from the event's content, so that a wrong or mixed-up answer is seen. The file
CONTROL/NODE says how the server of that node behaves: `errors`, `shapes`, `slow N`, or nothing. CONTROL/pace has the
seconds that an event takes. An event whose first hit is MARK takes the behaviour in its second value: KILLS, HANGS,
EXHAUSTS or LONG. Each delivery of such an event is a line in CONTROL/deliveries.
"""

import json
import os
import signal
import socket
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

#: r of the first hit of a special event, and φ of its kind.
MARK = 0.8125
KILLS, HANGS, EXHAUSTS, LONG = 0.125, 0.25, 0.375, 0.5


class TritonPythonModel:
    """Labels of `(index + 1000 z) mod 97`, after the time that an event takes."""

    def initialize(self, args):
        """Read where the control files are, and how long a long request takes."""
        parameters = json.loads(args["model_config"])["parameters"]
        self.control = Path(parameters["control"]["string_value"])
        self.long = float(parameters["long"]["string_value"])
        self.node = socket.gethostname()

    def execute(self, requests):
        """Answer each request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        features = pb_utils.get_input_tensor_by_name(request, "FEATURES").as_numpy()
        word, _, times = self._word(self.node).partition(" ")
        time.sleep(float(self._word("pace") or 0.01) * float(times or 1))
        if len(features) and features[0, 0] == MARK:
            self._special(features[0, 1])
        if word == "errors":
            error = pb_utils.TritonError("the model of this server is broken", pb_utils.TritonError.INTERNAL)
            return pb_utils.InferenceResponse([], error=error)
        labels = (np.arange(len(features)) + np.rint(1000 * features[:, 2])).astype(np.int64) % 97
        if word == "shapes":
            labels = np.append(labels, labels)
        return pb_utils.InferenceResponse([pb_utils.Tensor("LABELS", labels)])

    def _word(self, file):
        try:
            return (self.control / file).read_text().strip()
        except OSError:
            return ""

    def _special(self, kind):
        with (self.control / "deliveries").open("a") as file:
            file.write(f"{self.node} {kind}\n")
        if kind == KILLS:
            os.kill(os.getppid(), signal.SIGKILL)
        if kind == HANGS:
            time.sleep(3600)
        if kind == EXHAUSTS:
            os.kill(os.getpid(), signal.SIGKILL)  # what the kernel does to the process that takes too much memory
        if kind == LONG:
            time.sleep(self.long)
