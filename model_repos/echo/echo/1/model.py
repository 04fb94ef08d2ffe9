"""Model of the workload `echo`: it returns a request's points in four tensors of different lengths."""

import numpy as np
import triton_python_backend_utils as triton


class TritonPythonModel:
    """Answers each request separately: an invalid request gets an error, the others get their results."""

    def execute(self, requests):
        """Return a response for each request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        points = triton.get_input_tensor_by_name(request, "POINTS").as_numpy()
        ids = triton.get_input_tensor_by_name(request, "IDS").as_numpy()
        if len(points) != len(ids):
            return triton.InferenceResponse(error=triton.TritonError(f"{len(points)} points have {len(ids)} ids"))
        outputs = {
            "COPIES": points,
            "SUMS": points.sum(axis=1, dtype=np.float32),
            "LINKS": np.stack([ids[:-1], ids[1:]], axis=1),
            "SIZE": np.array([len(points)], dtype=np.int64),
        }
        tensors = [triton.Tensor(name, np.ascontiguousarray(array)) for name, array in outputs.items()]
        return triton.InferenceResponse(output_tensors=tensors)
