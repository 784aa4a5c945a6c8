"""What MLflow runs when it loads a bundle: code, no pickle. An array goes in, its probability comes out."""

from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class BundleModel(PythonModel):  # type: ignore[misc]
    """uint8 or uint16 [y, x] or [z, y, x] → uint8, p = value / 255, of the same shape; of several classes one behind the other."""

    def load_context(self, context: Any) -> None:
        """Build the network and load its weights."""
        from perfuse.bundle import Bundle
        from perfuse.inference import engine_of
        from perfuse.models import build

        self.bundle = Bundle.load(Path(context.artifacts["bundle"]))
        network = build(self.bundle.contract.forward.network)
        network.load_state_dict(self.bundle.weights)
        self.engine = engine_of(network, self.bundle.contract.forward)

    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> Any:  # noqa: ARG002 - the hint that MLflow takes for an array
        """Probability of each voxel, the axes of the contract fused."""
        from perfuse.inference import probability_of_array

        answer = probability_of_array(self.engine, self.bundle.contract.forward, np.asarray(model_input))
        return answer if len(answer) > 1 else answer[0]


set_model(BundleModel())
