"""What is written for users runs: every example of a docstring, every block of a page."""

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch
from torch import nn

import snnfast as snn
from snnfast import encoding, functional, norse, surrogate

MODULES = [snn.__name__, *(found.name for found in pkgutil.walk_packages(snn.__path__, "snnfast."))]
EXAMPLES = [
    name
    for name in MODULES
    if not name.endswith(("_C", "_C_cuda", "__main__")) and ">>>" in inspect.getsource(importlib.import_module(name))
]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_docstrings_run(name):
    names = {"torch": torch, "nn": nn, "snn": snn, "norse": norse}
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    failed, ran = doctest.testmod(importlib.import_module(name), extraglobs=names, optionflags=flags)
    assert ran and not failed


@pytest.mark.parametrize("module", [snn, encoding, functional, norse, surrogate])
def test_every_public_name_has_an_example(module):
    said = {name: getattr(module, name) for name in module.__all__ if callable(getattr(module, name))}
    without = [name for name, thing in said.items() if ">>>" not in (thing.__doc__ or "")]
    assert set(without) <= {"load_ipython_extension", "unload_ipython_extension"}
