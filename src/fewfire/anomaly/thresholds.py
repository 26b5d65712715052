"""Where usual ends: a score above which a row counts as an anomaly, from the scores of training rows.

Each is a function (usual, false_alarms) -> threshold. ``usual``: (n,) ascending, scores of training rows by members
that had not seen them. ``false_alarms``: the share of usual rows that may lie above. To add one, write it and name it
in ``THRESHOLDS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["THRESHOLDS", "p_values", "threshold"]

MAD_TO_STD = 1.4826
"""of a normal distribution"""
MAD_CUT = 3.5
"""deviations; Iglewicz & Hoaglin 1993, "How to detect and handle outliers", section 3"""
TAIL = 0.1
"""share of the scores that an extreme-value tail is fitted to"""


def body(usual: Tensor, false_alarms: float) -> float:
    """Where the tail would end if it went on as the body of the scores goes, exponentially from median to 90 %.

    Anomalies among the training rows, up to a tenth, move it little; without any it is near the quantile.
    """
    middle, high = torch.quantile(usual, torch.tensor([0.5, 0.9], dtype=usual.dtype)).tolist()
    return float(middle + (high - middle) / math.log(5) * math.log(0.5 / false_alarms))


def quantile(usual: Tensor, false_alarms: float) -> float:
    """The share ``false_alarms`` of the training rows lies above."""
    return float(torch.quantile(usual, 1 - false_alarms))


def mad(usual: Tensor, false_alarms: float) -> float:
    """Median + 3.5 robust deviations: half of the rows may be anomalies. ``false_alarms`` is not used."""
    middle = usual.median()
    return float(middle + MAD_CUT * MAD_TO_STD * (usual - middle).abs().median())


def tail(usual: Tensor, false_alarms: float) -> float:
    """A generalised Pareto tail over the top tenth, by probability-weighted moments (Hosking & Wallis 1987, eq. 9).

    It tells of shares smaller than one in n. With fewer than 20 rows there is no tail to fit: the quantile.
    """
    excess = usual[int(len(usual) * (1 - TAIL)) :]
    if len(excess) < 2 or false_alarms >= TAIL:
        return quantile(usual, false_alarms)
    start, excess = excess[0], excess - excess[0]
    n = len(excess)
    first = excess.mean()
    second = (excess * (n - torch.arange(1, n + 1, dtype=usual.dtype)) / (n - 1)).mean()
    if first <= 0 or first <= 2 * second:
        return quantile(usual, false_alarms)
    shape = float(first / (first - 2 * second) - 2)  # Hosking's k; the usual xi is -k
    scale = float(2 * first * second / (first - 2 * second))
    ratio = false_alarms / TAIL
    far = -scale * math.log(ratio) if abs(shape) < 1e-6 else scale / shape * (1 - ratio**shape)
    return float(start) + far


def conformal(usual: Tensor, false_alarms: float) -> float:
    """At most ``false_alarms`` of rows like the training rows lie above, of any distribution (Vovk et al. 2005).

    Where 1 / (n + 1) is more than that, no score is high enough, and none is found: infinity.
    """
    rank = math.ceil((1 - false_alarms) * (len(usual) + 1))
    return float(usual[rank - 1]) if rank <= len(usual) else math.inf


def novelty(usual: Tensor, false_alarms: float) -> float:
    """Above all training rows: they are all taken to be usual. ``false_alarms`` is not used."""
    return float(usual[-1])


THRESHOLDS: dict[str, Callable[[Tensor, float], float]] = {
    "auto": body,
    "quantile": quantile,
    "mad": mad,
    "tail": tail,
    "conformal": conformal,
    "novelty": novelty,
}


def threshold(rule: str | float, usual: Tensor, false_alarms: float = 0.01) -> float:
    """The threshold by this rule, or the number itself.

    Raises
    ------
    ValueError
        There is no such rule.
    """
    if not isinstance(rule, str):
        return float(rule)
    if rule not in THRESHOLDS:
        raise ValueError(f"expected threshold to be a number or one of {', '.join(THRESHOLDS)}; got {rule!r:.60}")
    return THRESHOLDS[rule](usual, false_alarms)


def p_values(scores: Tensor, usual: Tensor) -> Tensor:
    """(B,) the share of training rows, the row itself counted, with a score at least as high.

    Of a row like the training rows, the chance that it is at most p is at most p (Vovk et al. 2005, section 2.2).
    """
    above = len(usual) - torch.searchsorted(usual, scores, right=False)
    return (above + 1).double() / (len(usual) + 1)
