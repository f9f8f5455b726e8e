"""The reference systems, one readable file each."""

from recipes import current_fc, norse_conv, norse_recurrent, poisson_fc, rate_fc, zero_reset_fc

RECIPES = {
    "rate-fc": rate_fc.RECIPE,
    "poisson-fc": poisson_fc.RECIPE,
    "zero-reset-fc": zero_reset_fc.RECIPE,
    "norse-recurrent": norse_recurrent.RECIPE,
    "norse-conv": norse_conv.RECIPE,
    "current-fc": current_fc.RECIPE,
}
