"""The time loop of snnTorch's tutorials, for the recipes written in it."""

import torch
from torch import Tensor, nn


class StepLoop(nn.Sequential):
    """Linear, neurons, Linear, neurons: run step by step, as snnTorch's authors write it."""

    def forward(self, x: Tensor):
        """Run x [T, B, inputs], from resting neurons, to spikes [T, B, outputs].

        With the last neurons' output=True, to their (spikes, membranes).
        """
        fc1, lif1, fc2, lif2 = self
        mem1, mem2 = lif1.reset_mem(), lif2.reset_mem()
        spk2_rec, mem2_rec = [], []
        for step in x.unbind(0):
            spk1, mem1 = lif1(fc1(step), mem1)
            spk2, mem2 = lif2(fc2(spk1), mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        spikes, membranes = torch.stack(spk2_rec), torch.stack(mem2_rec)
        return (spikes, membranes) if lif2.output else spikes
