"""snnTorch's list of all layers, which its `utils.reset` and `backprop` go through, without keeping a layer alive."""

import weakref


class Entry:
    """Stands for a layer in `SpikingNeuron.instances`: its class to `isinstance`, its attributes, its calls.

    Once the layer is gone it is an instance of nothing and has no attributes, where a weakref.proxy would raise
    ReferenceError at whoever looks through all objects, as loops over `gc.get_objects()` do.
    """

    __slots__ = ("_reference",)

    def __init__(self, layer):
        reference = weakref.ref(layer)
        hash(reference)  # which it then knows for good
        object.__setattr__(self, "_reference", reference)

    @property
    def __class__(self):
        layer = self._reference()
        return Entry if layer is None else type(layer)

    def __getattr__(self, name):
        return getattr(self._layer(), name)

    def __setattr__(self, name, value):
        self._layer().set_through_list(name, value)

    def __call__(self, *args, **kwargs):
        return self._layer()(*args, **kwargs)

    def __eq__(self, other):
        mine = self._reference()
        return self is other or (mine is not None and mine is layer_of(other))

    def __hash__(self):
        return hash(self._reference)

    def __repr__(self):
        return f"<{self._reference()!r} in SpikingNeuron.instances>"

    def _layer(self):
        layer = self._reference()
        if layer is None:
            raise AttributeError("the layer that stood here in SpikingNeuron.instances is gone")
        return layer


_swept_at = 64
"""The length at which `enter` next looks for entries whose layers are gone."""


def enter(layer, instances: list) -> None:
    """Enters a layer in snnTorch's list.

    As there, an entry outlasts its layer, so that the list counts what was made; but entries of layers that are gone
    leave it before they outnumber the others by more than a few.
    """
    global _swept_at
    if len(instances) >= _swept_at:
        instances[:] = [entry for entry in instances if layer_of(entry) is not None]
        _swept_at = 64 + 2 * len(instances)
    instances.append(Entry(layer))


def layer_of(entry):
    """The layer behind an entry of the list, alive as long as it is held; None where it is gone."""
    return entry._reference() if type(entry) is Entry else entry
