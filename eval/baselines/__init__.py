"""Routers of the literature, to compare with: no part of the product. docs/routers.md says how each differs."""
