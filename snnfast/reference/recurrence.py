"""Elementwise recurrence: every neuron feeds itself (snntorch/_neurons/rleaky.py, RecurrentOneToOne)."""

from dataclasses import replace

from .model import Model


def one_to_one(model: Model) -> Model:
    """A recurrent model whose second current is its own last spikes times V: a state more, an input less."""

    def charge(x, states, params, reset, call):
        *states, spk = states
        *params, V = params
        return (*model.charge((x, spk * V), tuple(states), tuple(params), reset, call), spk)

    def fire(states, reset, params, call):
        *states, _ = states
        spk, states = model.fire(tuple(states), reset, params[:-1], call)
        return spk, (*states, spk)

    def reset(states, params, call):
        return model.reset(states, params[:-1], call)

    def threshold(states, params):
        return model.threshold(states[:-1], params[:-1])

    return replace(
        model,
        name=f"{model.name}_one_to_one",
        states=(*model.states, "spk"),
        params=(*model.params, "V"),
        charge=charge,
        fire=fire,
        reset=reset,
        threshold=threshold,
        changed=(*model.changed, "spk"),
        held=(*model.held, "spk"),
        output="spk",
        recurrent=False,
    )
