"""The reference systems, one readable file each.

A recipe is a module with these names, which `training.py` calls:

    EPOCHS, BATCH_SIZE                   what the authors trained with
    network(library, pixels)             module from spikes [T, B, pixels] to spikes [T, B, 10]
    encode(images, generator)            images [B, H, W] from 0 to 1 to spikes [T, B, H * W]
    loss(output, target)                 scalar, mean over the batch
    scores(output)                       [B, 10]; the prediction is the largest
    optimizer(parameters)                torch.optim.Optimizer
"""

from recipes import rate_fc

RECIPES = {"rate-fc": rate_fc}
