"""What bits are worth on this machine: time, memory and predictions of a packed network.

    python -m sbnlib.experiments.packing [--quick] [--threads N] [--out FILE]

Rows by ``part``: ``product``, one matrix of signs times a batch of signs, in float32, in bytes and
in bits; ``network``, the network of ``--net`` in float32 by torch, with bytes, and packed;
``profile``, layer by layer, in float32 and packed; ``memory``, bytes in files and arrays, and the
peak of a process that makes one prediction; ``prediction``, whether the packed network gives the
class that the float32 one gives, image by image; ``bandwidth``, how fast memory is read.

All sides of a row run in turns in one process; seconds are minimum and median of processor time
with one thread (see ``sbnlib.experiments.bench``). All sides must first give the same integers, and
the same classes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sbnlib import data as datasets
from sbnlib import packed
from sbnlib.contracts import check_count
from sbnlib.experiments import measurement
from sbnlib.experiments.bench import Side, on_threads, take_turns
from sbnlib.experiments.binary_net import load_net
from sbnlib.experiments.command import add_option, add_out, refusing, repeat
from sbnlib.inference import to_plain
from sbnlib.packed import products, runtime
from sbnlib.packed.convert import steps

__all__ = ["FULL", "QUICK", "Sizes", "float_steps", "int8_network", "main", "measured"]

Row = dict[str, Any]
NET = "binary-weights-512-512.npz"
IMAGES = 1000  # looked at together


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Attributes:
        matrices: (inputs, outputs) of the products.
        batches: of products, of the network and of the profile.
        patience: multiplications of a side behind a minimum, in all its rounds.
        rounds: at most.
        bytes: of the array that is read for the bandwidth.
    """

    matrices: tuple[tuple[int, int], ...] = ((512, 512), (4096, 4096))
    batches: tuple[int, ...] = tuple(2**k for k in range(11))
    patience: float = 1e11
    rounds: int = 200
    bytes: int = 1 << 28

    def turns(self, multiplications: float) -> int:
        """Rounds of sides that take so many multiplications."""
        return max(3, min(self.rounds, int(self.patience / multiplications)))


FULL = Sizes()
QUICK = Sizes(((64, 70),), (1, 16), 1e6, 3, 1 << 20)


# One product --------------------------------------------------------------------------------------


def product_rows(sizes: Sizes) -> Iterator[Row]:
    """A matrix of signs times a batch of signs; what the sides take is ready, or packed in time."""
    for n, m in sizes.matrices:
        w = _signs(m, n)
        for batch in sizes.batches:
            x = _signs(batch, n)
            sides = _product_sides(x, w)
            expected = sides["float32"]().to(torch.int32)
            same = all((torch.as_tensor(side()) == expected).all() for side in sides.values())
            found = _timed(sides, sizes.turns(n * m * batch))
            yield {
                "part": "product",
                "inputs": n,
                "outputs": m,
                "batch": batch,
                "same": same,
            } | found


def _signs(rows: int, n: int) -> Tensor:
    draw = torch.Generator().manual_seed(rows + n)
    return 2 * torch.randint(2, (rows, n), generator=draw, dtype=torch.int8) - 1


def _product_sides(x: Tensor, w: Tensor) -> dict[str, Callable[[], Any]]:
    """Name -> what gives the (batch, outputs) sums."""
    n = x.shape[1]
    a, b = x.float(), w.float().T.contiguous()
    one, two = packed.pack(x.numpy()), packed.pack(w.numpy())
    eight = w.T.contiguous()

    def bits(name: str) -> Callable[[], Any]:
        product = products.product(name)
        return lambda: packed.xnor_linear(one, two, n, product=product)

    sides: dict[str, Callable[[], Any]] = {
        "float32": lambda: a @ b,
        "int8": lambda: torch._int_mm(x, eight),
        "numpy": bits("numpy"),
    }
    if find_spec("numba"):
        fastest = products.product("numba")
        sides["numba"] = bits("numba")
        sides["numba, packing"] = lambda: packed.xnor_linear(
            packed.pack(a.numpy()), two, n, product=fastest
        )
    return sides


def _timed(sides: dict[str, Side], rounds: int) -> Row:
    """Name -> minimum and median seconds."""
    times = take_turns(*sides.values(), rounds=rounds)
    return {"rounds": rounds, "seconds": dict(zip(sides, map(list, times), strict=True))}


# The network --------------------------------------------------------------------------------------


def network_rows(net: nn.Module, images: Tensor, sizes: Sizes) -> Iterator[Row]:
    """The whole network, and the layers of its float32 and of its packed form."""
    names = [name for name in ("numba", "int8", "numpy") if name != "numba" or find_spec("numba")]
    models = {name: packed.convert(net, backend=name) for name in names}
    eight = int8_network(models["numpy"])
    layers = float_steps(net)
    plain = nn.Sequential(*(step for _, step in layers))
    for batch in sizes.batches:
        x = images[:batch]
        own = x.numpy()
        sides: dict[str, Side] = {"float32": _without_gradients(plain, x)}
        sides["int8"] = _without_gradients(eight, x)
        sides |= {f"packed, {name}": _called(model, own) for name, model in models.items()}
        rounds = sizes.turns(batch * sum(p.numel() for p in net.parameters()))
        yield {"part": "network", "batch": batch} | _timed(sides, rounds)
        yield from _profile("float32", layers, x, rounds)
        model = models[packed.best()]
        packs = [(layer.kind, _layer(model, layer)) for layer in model.layers]
        yield from _profile(model.backend, packs, own, rounds)


def _called(function: Callable[[Any], Any], value: Any) -> Side:
    return lambda: function(value)


def _without_gradients(function: Callable[[Tensor], Any], x: Tensor) -> Side:
    return _called(torch.no_grad()(function), x)


def _layer(model: runtime.Model, layer: runtime.Layer) -> Callable[[Any], Any]:
    return lambda value: runtime.KINDS[layer.kind](layer, value, model.product)


def _profile(
    name: str, layers: Sequence[tuple[str, Callable[[Any], Any]]], value: Any, rounds: int
) -> Iterator[Row]:
    """Each layer by itself, on what the layers below it give."""
    for k, (kind, step) in enumerate(layers):
        with torch.no_grad():
            row = {"part": "profile", "side": name, "layer": k, "kind": kind, "batch": len(value)}
            (times,) = take_turns(_without_gradients(step, value), rounds=rounds)
            yield row | {"seconds": list(times)}
            value = step(value)


def float_steps(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers of a network in float32, units at their signs, by name; as torch runs them."""
    return [(type(module).__name__, module) for _, module in steps("", to_plain(net).eval())]


def int8_network(model: runtime.Model) -> Callable[[Tensor], Tensor]:
    """The same network with bytes for signs: ``torch._int_mm`` and the integer thresholds."""
    layers = list(map(_int8_step, model.layers))

    def run(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x

    return run


def _int8_step(layer: runtime.Layer) -> Callable[[Tensor], Tensor]:
    own = {name: torch.from_numpy(a) for name, a in layer.arrays.items() if name != "bits"}
    match layer.kind:
        case "linear":
            weight = _whole(layer)
            real = weight.float().T.contiguous()
            eight = weight.to(torch.int8).T.contiguous() if "bits" in layer.arrays else None
            return lambda x: (
                x.float() @ real
                if eight is None or x.is_floating_point()
                else torch._int_mm(x, eight)
            )
        case "norm":
            return lambda x: x * own["scale"] + own["shift"]
        case "bias":
            return lambda x: x + own["bias"]
        case "sign":
            return lambda x: (x >= 0).to(torch.int8) * 2 - 1
        case "threshold":
            return lambda x: ((x >= own["at"]) == own["up"]).to(torch.int8) * 2 - 1
    raise ValueError(f"net: a layer of kind {layer.kind} has no form in bytes here")


def _whole(layer: runtime.Layer) -> Tensor:
    if "bits" in layer.arrays:
        return torch.from_numpy(runtime.unpack(layer.arrays["bits"], layer.options["inputs"]))
    return torch.from_numpy(layer.arrays["weight"])


# Memory and predictions ---------------------------------------------------------------------------

#: What a process does: predict one image, by the runtime with numpy alone, and by torch.
ALONE = "import runpy, sys; runpy.run_path(sys.argv[4])['main'](sys.argv[1:4])"
TORCH = (
    "import sys, numpy, torch; from sbnlib.experiments.binary_net import load_net; "
    "net = load_net(sys.argv[1]); numpy.save(sys.argv[3], "
    "net(torch.from_numpy(numpy.load(sys.argv[2]))).detach().numpy())"
)
PEAK = "; print([s.split()[1] for s in open('/proc/self/status') if s.startswith('VmHWM')][0])"


def memory_rows(path: Path, net: nn.Module, image: Tensor) -> Iterator[Row]:
    """Bytes of the network in its forms, and the peak of a process for one prediction."""
    model = packed.convert(net)
    parameters = sum(t.numel() for name, t in net.state_dict().items() if "num_batches" not in name)
    weights = sum(p.numel() for p in net.parameters() if (p.abs() == 1).all())
    real = 4 * (parameters - weights)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model.save(place / "packed.npz")
        torch.save(net.state_dict(), place / "float32.pt")
        np.save(place / "image.npy", image.numpy())
        files = {name: (place / name).stat().st_size for name in ("float32.pt", "packed.npz")}
        peaks = _peaks(path, place)
    found = {
        "float32": (4 * parameters, files["float32.pt"], peaks[1]),
        "int8": (weights + real, None, None),
        "packed": (model.nbytes, files["packed.npz"], peaks[0]),
    }
    for form, (arrays, file, peak) in found.items():
        yield {"part": "memory", "form": form, "arrays": arrays, "file": file, "peak_mib": peak}
    layers = {f"{k} {own.kind}": own.nbytes for k, own in enumerate(model.layers)}
    yield {"part": "memory", "form": "packed, by layer", "layers": layers}


def _peaks(path: Path, place: Path) -> list[float | None]:
    """MiB of a process with numpy alone, and of one with torch; None where it is not told."""
    if not Path("/proc/self/status").exists():
        return [None, None]
    files = [str(place / "image.npy"), str(place / "out.npy"), str(runtime.__file__)]
    calls = ((ALONE, place / "packed.npz"), (TORCH, path))
    words = [[sys.executable, "-c", code + PEAK, str(file), *files] for code, file in calls]
    return [int(_printed(own)) / 1024 for own in words]


def _printed(words: list[str]) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


@torch.no_grad()
def prediction_row(net: nn.Module, data: datasets.Dataset) -> Row:
    """How many test images have the same class packed and in float32, and how many are right."""
    model, images = packed.convert(net), data.test
    eight = int8_network(model)
    same = bytes_same = right = 0
    for x, labels in zip(images.inputs.split(IMAGES), images.labels.split(IMAGES), strict=True):
        expected, found = net(x).argmax(-1), torch.from_numpy(model(x.numpy()).argmax(-1))
        same += int((found == expected).sum())
        bytes_same += int((eight(x).argmax(-1) == expected).sum())
        right += int((found == labels).sum())
    row = {"part": "prediction", "data": data.name, "images": len(images.labels)}
    return row | {"same": same, "same_int8": bytes_same, "right": right}


def bandwidth_row(size: int) -> Row:
    """Bytes a second at which a sum reads an array that no cache holds."""
    array = np.ones(size // 8)
    (times,) = take_turns(lambda: array.sum(), rounds=7)
    return {"part": "bandwidth", "bytes": array.nbytes, "seconds": list(times)}


# The command --------------------------------------------------------------------------------------


def measured(path: Path, data: datasets.Dataset, sizes: Sizes) -> list[Row]:
    """All rows, printed as they come."""
    net = load_net(path)
    images = data.test.inputs[: max(sizes.batches)]
    rows: list[Row] = []
    parts = (
        iter([prediction_row(net, data)]), memory_rows(path, net, images[:1]),
        iter([bandwidth_row(sizes.bytes)]), product_rows(sizes), network_rows(net, images, sizes),
    )  # fmt: skip
    for part in parts:
        for row in part:
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


def _checks(rows: Sequence[Row]) -> dict[str, bool]:
    (own,) = (row for row in rows if row["part"] == "prediction")
    return {
        "all sides give the same sums": all(r["same"] for r in rows if r["part"] == "product"),
        "packed: same predictions": own["same"] == own["images"],
        "int8: same predictions": own["same_int8"] == own["images"],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """1 if two sides differ."""
    parser = _parser()
    options = parser.parse_args(argv)
    with refusing(parser, OSError, RuntimeError, ValueError):  # DataError, MeasurementError
        check_count("threads", options.threads)
        if options.out:
            measurement.check_writable(options.out)
        data = datasets.load(options.data)
        path = options.net or measurement.kept(NET)
        load_net(path)
    with on_threads(options.threads):
        rows = measured(path, data, QUICK if options.quick else FULL)
        device = measurement.describe_device()
    result = measurement.record(
        kind="packing", command=repeat("packing", argv), device=device, seeds=[],
        checks=_checks(rows), rows=rows,
    )  # fmt: skip
    if options.out:
        measurement.write(options.out, result)
        print(f"written to {options.out}")
    return 0 if all(result["checks"].values()) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sbnlib.experiments.packing",
        description=(__doc__ or "").split("\n")[0],
    )
    known = sorted(datasets.DATASETS)
    add_option(parser, "data", "fashion-mnist", f"data set: {', '.join(known)}", choices=known)
    parser.add_argument(
        "--net", type=Path, metavar="FILE",
        help=f"a network of binary weights (default: {NET} of the book)",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, to see that it runs (default: off)"
    )
    add_option(parser, "threads", 1, "number of CPU threads, on all sides")
    add_out(parser)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
