"""[get_weather(city="Paris"), now()]: names, keyword arguments and literals; nothing is evaluated."""

from __future__ import annotations

from core.parsing.python_calls import PythonFormat
from core.parsing.python_structure import PythonToolParser


class PythonicToolParser(PythonToolParser):
    """The list alone."""

    form = PythonFormat()


class Llama4PythonicToolParser(PythonToolParser):
    """Llama 4: the list may stand between markers; a list without them is read as well."""

    form = PythonFormat(opening="<|python_start|>", closing="<|python_end|>")
