"""Single-neuron and coding demonstrations, drawn: python examples/demos.py --demo all --plots runs/demos."""

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from matplotlib.animation import Animation
from matplotlib.figure import Figure
from torch import Tensor, nn

import animations
import datasets
import pictures
import snnfast
from files import InputError, check_writable
from snnfast import encoding

DT_MS = 1.0
TAU_MS = 20.0
PLATEAUS = (0.6, 1.1, 0.9, 1.2)
GAINS = (1, 0.25)
LATENCY = {"tau": 5, "threshold": 0.01, "bypass": True}
LATENCY_VARIANTS = {
    "logarithmic": {},
    "linear": {"linear": True},
    "linear, normalize": {"linear": True, "normalize": True},
    "linear, normalize, clip": {"linear": True, "normalize": True, "clip": True},
}
SIGNAL = (0.0, 1, 0, 2, 8, -20, 20, -5, 0, 1, 0)
DELTA_THRESHOLD = 4
PIXELS, HIDDEN, CLASSES = 784, 1000, 10
BETA = 0.99

Pictures = dict[str, Figure | Animation]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (default: sys.argv) and return the exit code.

    Bad input raises SystemExit(2) after one line on standard error.
    """
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        check_writable(args.plots / "demo.png", "--plots")
        for name in DEMOS if args.demo == "all" else [args.demo]:
            torch.manual_seed(args.seed)
            for file, picture in DEMOS[name](args).items():
                print(pictures.save(picture, args.plots / file), flush=True)
    except (InputError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    return 0


def rc_circuit(
    current: Tensor,
    tau: float = TAU_MS,
    dt: float = DT_MS,
    resistance: float = 1.0,
    rest: float = 0.0,
    threshold: float = 1.0,
    reset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """A neuron as a resistor and a capacitor in parallel, in Euler steps on `snnfast.Leaky`.

    The step `V += (-(V - rest) + resistance * I) * dt / tau`, with V set to `reset` where it exceeds `threshold`, is
    Leaky's for the membrane V - reset: it decays by 1 - dt / tau and is zeroed in the same step as it fires.

    Args:
        current: I [T, ...], float32 or float64.
        tau, dt: time constant and step, in the same unit, with 0 < dt <= tau.
        resistance: volts per unit of current.
        rest, threshold, reset: voltages. V starts at rest.

    Returns:
        Spikes and voltages, both [T, ...] as `current`; a voltage is the one after the reset.

    Raises:
        ValueError: dt is not in (0, tau].
    """
    if not 0 < dt <= tau:
        raise ValueError(f"dt must be above 0 and at most tau, got dt={dt} and tau={tau}")
    # In the current's dtype, or a float64 decay would be rounded to float32.
    beta = torch.tensor(1 - dt / tau, dtype=current.dtype)
    neuron = snnfast.Leaky(beta, threshold=threshold - reset, reset_mechanism="zero", reset_delay=False)
    drive = (resistance * current + rest - reset) * (dt / tau)
    start = torch.full_like(current[0], rest - reset)
    spikes, membrane = neuron.to(current.device).unroll(drive, start)
    return spikes, membrane + reset


def plateau_current(steps: int) -> Tensor:
    """PLATEAUS one after the other in `steps` of DT_MS, with a ripple of 0.05 at 10 Hz: [steps] in float64."""
    step = torch.arange(steps)
    ripple = 0.05 * torch.sin(2 * math.pi * 10 * step.double() * DT_MS / 1000)
    return torch.tensor(PLATEAUS, dtype=torch.float64)[step * len(PLATEAUS) // steps] + ripple


def draw_rc_circuit(args: argparse.Namespace) -> Pictures:
    """Draw the RC circuit under plateau currents, 2000 steps of 1 ms."""
    current = plateau_current(args.steps or 2000)
    spikes, voltage = rc_circuit(current)
    title = f"LIF as an RC circuit, Euler steps of {DT_MS:g} ms, tau {TAU_MS:g} ms"
    return {"rc-circuit.png": pictures.traces(current, voltage, spikes, title=title, dt=DT_MS)}


def draw_rate(args: argparse.Namespace) -> Pictures:
    """Draw rate coding with two gains, and the image rebuilt from the spikes, 100 steps."""
    images, spikeable = _digit(args)
    trains = {f"gain {gain:g}": encoding.rate(spikeable, args.steps or 100, gain=gain) for gain in GAINS}
    first = next(iter(trains.values()))
    return {
        "rate-raster.png": pictures.raster(trains, title="Rate coding of one digit"),
        "rate-intervals.png": pictures.interval_raster(first, images, title="Rate coding, gain 1"),
        "rate-image.png": pictures.rate_image(trains, images),
        "rate.gif": animations.input_spikes(first, images, title="Rate coding, gain 1"),
    }


def draw_latency(args: argparse.Namespace) -> Pictures:
    """Draw latency coding and its variants, 100 steps."""
    images, spikeable = _digit(args)
    steps = args.steps or 100
    trains = {
        name: encoding.latency(spikeable, steps, **LATENCY, **options) for name, options in LATENCY_VARIANTS.items()
    }
    coding = f"Latency coding, tau {LATENCY['tau']} steps, threshold {LATENCY['threshold']}"
    name, clipped = list(trains.items())[-1]
    return {
        "latency-raster.png": pictures.raster(trains, title=coding),
        "latency-intervals.png": pictures.interval_raster(clipped, images, title=f"{coding} ({name})"),
        "latency.gif": animations.input_spikes(clipped, images, title=f"{coding} ({name})"),
    }


def draw_delta(args: argparse.Namespace) -> Pictures:
    """Draw delta modulation of a signal, with spikes for rises and for falls."""
    signal = torch.tensor(SIGNAL)[: args.steps]
    spikes = encoding.delta(signal, threshold=DELTA_THRESHOLD, off_spike=True)
    title = f"Delta modulation, a spike where the signal changes by {DELTA_THRESHOLD} or more"
    return {"delta.png": pictures.encoded_signal(signal, spikes, title)}


def draw_network(args: argparse.Namespace) -> Pictures:
    """Draw what a random rate train evokes in an untrained network 784-1000-10, 200 steps."""
    probability = torch.rand(args.steps or 200, 1, PIXELS)
    train = encoding.rate(probability, time_var_input=True)
    hidden, output, membranes = untrained_network(train)
    trains = {"input": train, "hidden layer": hidden, "output": output}
    name = f"untrained {PIXELS}-{HIDDEN}-{CLASSES} network, beta {BETA}"
    return {
        "network-raster.png": pictures.raster(trains, title=f"Random spikes through an {name}"),
        "network-membranes.png": pictures.output_membranes(
            membranes, threshold=1.0, title=f"Output membranes of an {name}"
        ),
    }


@torch.no_grad()
def untrained_network(spikes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Push spikes [T, B, PIXELS] through two layers of new Leaky neurons.

    Returns:
        Hidden spikes [T, B, HIDDEN], and output spikes and membranes, both [T, B, CLASSES].
    """
    hidden, _ = snnfast.Leaky(BETA).unroll(nn.Linear(PIXELS, HIDDEN)(spikes))
    output, membranes = snnfast.Leaky(BETA).unroll(nn.Linear(HIDDEN, CLASSES)(hidden))
    return hidden, output, membranes


DEMOS: dict[str, Callable[[argparse.Namespace], Pictures]] = {
    "rc-circuit": draw_rc_circuit,
    "rate": draw_rate,
    "latency": draw_latency,
    "delta": draw_delta,
    "network": draw_network,
}


def _digit(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """The first training image [1, H, W], and its brightness [1, H * W] from 0 to 1."""
    images = datasets.load(args.data).train_images[:1]
    return images, images.flatten(1).float() / 255


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run demonstrations of neurons and codings, and draw them.")
    add = parser.add_argument
    add("--demo", choices=[*DEMOS, "all"], default="all", help="what to show (%(default)s)")
    add("--plots", type=Path, default=Path("runs/demos"), metavar="DIR", help="pictures go here (%(default)s)")
    data = os.environ.get("SNNFAST_DATA") or "data"
    add("--data", type=Path, default=data, metavar="DIR", help="holds MNIST/raw (%(default)s)")
    add("--steps", type=_positive, metavar="T", help="time steps (each demonstration's own)")
    add("--seed", type=int, default=0, help="of random spikes and weights (%(default)s)")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} given, must be a whole number from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
