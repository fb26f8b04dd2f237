"""Where the shipped model lies; it travels with the package."""

from pathlib import Path

SHIPPED_MODEL = Path(__file__).resolve().parents[1] / "shipped"
