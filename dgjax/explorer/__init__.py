"""The explorer: one HTML file in which samples are looked at by their log-density."""

from dgjax.explorer.page import Exploration, Setting, check_images, render_page

__all__ = ["Exploration", "Setting", "check_images", "render_page"]
