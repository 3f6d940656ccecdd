"""A Matplotlib figure that notebooks show, whether pyplot is in use or not."""

import io

from matplotlib.figure import Figure

__all__ = ["Picture"]


class Picture(Figure):
    """A figure that is not registered with pyplot.

    Notebooks show Matplotlib's own figures only after pyplot has drawn one.
    """

    def _repr_png_(self) -> bytes:
        """Return the figure as a PNG, by which IPython shows it."""
        stream = io.BytesIO()
        self.savefig(stream, format="png")
        return stream.getvalue()
