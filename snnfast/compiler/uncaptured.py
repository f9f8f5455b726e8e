"""What runs outside of any graph, for functions that torch compiles to call."""

import torch

from .. import over_time

call_hooked = torch.compiler.disable(over_time.call_hooked, reason="hooks around a whole sequence are not captured")
