"""The explorer: one HTML file that shows samples at different log-densities."""

from dgjax.explorer.page import Exploration, Setting, check_images, render_page

__all__ = ["Exploration", "Setting", "check_images", "render_page"]
