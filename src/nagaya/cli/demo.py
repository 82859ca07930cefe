from __future__ import annotations
from nagaya.cli.place import Place
def demo(place: Place) -> None:
    """x"""
