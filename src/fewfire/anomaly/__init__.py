"""How unusual the rows of a table are: small ensembles of autoencoders, their scores on one scale."""

from fewfire.anomaly.detector import MAX_ROWS, Detector, Findings, default_parts
from fewfire.anomaly.ensemble import Ensemble
from fewfire.anomaly.files import DETECTOR, find_detector, load_detector, save_detector
from fewfire.anomaly.part import Part, Reading
from fewfire.anomaly.prototypes import Prototypes
from fewfire.anomaly.sample import Sample
from fewfire.anomaly.surprisal import Surprisal
from fewfire.anomaly.thresholds import THRESHOLDS, p_values, threshold
from fewfire.anomaly.views import Views

__all__ = [
    "DETECTOR",
    "MAX_ROWS",
    "THRESHOLDS",
    "Detector",
    "Ensemble",
    "Findings",
    "Part",
    "Prototypes",
    "Reading",
    "Sample",
    "Surprisal",
    "Views",
    "default_parts",
    "find_detector",
    "load_detector",
    "p_values",
    "save_detector",
    "threshold",
]
