"""The old name of ``headstart.predictor``, for scripts that import it."""

from headstart.predictor import Prediction as Prediction
from headstart.predictor import evaluate_run as evaluate_run
from headstart.predictor import predict_paths as predict_paths
