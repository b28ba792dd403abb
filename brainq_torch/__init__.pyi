from brainq_torch.fit import fit
from brainq_torch.series.find import Unread
from export.context import ExportOptions
from export.pipeline import export
from export.run.model import Model, Prediction, SeriesPrediction, load
from tools.evaluate.measure import evaluate

__version__: str
__all__ = [
    "ExportOptions", "Model", "Prediction", "SeriesPrediction", "Unread", "__version__",
    "evaluate", "export", "fit", "load",
]  # fmt: skip
