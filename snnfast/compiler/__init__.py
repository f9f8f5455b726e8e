"""The torch.compile backend "snnfast": a user's own loop over time runs layer by layer over whole sequences.

The data's way: capture (torch._dynamo) -> `simplify` -> `chains` -> `packing`, with the batching `rules`, legal by
`order` and `effects` -> `emission`. The result is an ordinary differentiable `torch.fx.GraphModule`.

Nothing is imported here: who compiles imports `accelerate`, `backend` or `explain`, and with it torch._dynamo.
"""
