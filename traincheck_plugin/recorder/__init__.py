"""Recording a training run in the process that trains."""

from traincheck_plugin.recorder.recorder import Recorder
from traincheck_plugin.recorder.sampling import Sampling

__all__ = ["Recorder", "Sampling"]
