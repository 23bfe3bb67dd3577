"""Recording a training run in the process that trains."""

from traincheck_plugin.recorder.recorder import Recorder
from traincheck_plugin.recorder.sampling import Sampling
from traincheck_plugin.recorder.variables import Selection

__all__ = ["Recorder", "Sampling", "Selection"]
