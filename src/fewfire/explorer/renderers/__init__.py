"""How rows of each kind of data come to the page: a class in a file each, here and in ``frontend/src/renderers``."""

from fewfire.explorer.renderers.family import Marks, Renderer, contributions, renderer_for
from fewfire.explorer.renderers.image import Image
from fewfire.explorer.renderers.series import Series
from fewfire.explorer.renderers.table import Table
from fewfire.explorer.renderers.text import Text

__all__ = ["Image", "Marks", "Renderer", "Series", "Table", "Text", "contributions", "renderer_for"]
