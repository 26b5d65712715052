"""What training lowers: a weighted sum of terms. One class a term.

Conventions, the same for every term: a term sums over columns or latents and averages over the rows of the batch,
so that ``MSE(weight=0.5)`` plus ``KLSparsity(weight=beta)`` plus ``WeightDecay(weight=lambda)`` is the objective of the
course, letter by letter (docs/textbook.md). ``weight`` is read at every step, so a schedule may change it.

To add one, write one class in a file here and import it below::

    class Hoyer(Term):
        def __call__(self, model, out, state=None):
            ...

and ``objective: [mse, {name: hoyer, weight: 0.001}]``, the command line and the parametrised tests know it.
"""

from fewfire.terms.dictionaries import AuxK, GatedAux
from fewfire.terms.family import Term
from fewfire.terms.reconstruction import BCE, MSE, MatryoshkaMSE
from fewfire.terms.regularisation import Contractive, Orthogonality, WeightDecay
from fewfire.terms.sparsity import L1, KLSparsity, L0Penalty
from fewfire.terms.variational import GaussianKL

__all__ = [
    "BCE",
    "L1",
    "MSE",
    "AuxK",
    "Contractive",
    "GatedAux",
    "GaussianKL",
    "KLSparsity",
    "L0Penalty",
    "MatryoshkaMSE",
    "Orthogonality",
    "Term",
    "WeightDecay",
]
