"""Convergence of the sweeps of the feedback networks and of their gradients, as a table and a plot.

    python examples/benchmarks/sweeps.py [--output examples/guides/images/sweeps.svg]

Networks with random weights, d = 64, read random embeddings of 8 texts of 30 tokens, in float64. Left: the residual of
each sweep. Middle: the same for the parallel sweep, with W and V scaled to norms whose sum is ‖W‖ + ‖V‖. Right: how far
the gradient through K sweeps is from the implicit gradient of the fixed point. Needs matplotlib (`pip install
"hf-feedback[plots]"`).
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from hf_feedback import FNNConfig, FNNModel

SWEEPS = 40
KINDS: dict[str, dict[str, Any]] = {
    "temporal, sequential": dict(sweep="sequential"),
    "temporal, parallel": dict(sweep="parallel"),
    "layered (L = 3)": dict(fnn_type="layered"),
}
NORMS = (0.5, 0.9, 1.3, 2.5)


def network(**options: Any) -> FNNModel:
    """A network with random weights, the same ones for the same kind."""
    torch.manual_seed(0)
    return FNNModel(FNNConfig(vocab_size=2, hidden_size=64, **options)).double().eval()


def residuals(model: FNNModel, x: torch.Tensor) -> list[float]:
    """The residuals of sweeps 2, 3, …, of the slowest text."""
    with torch.no_grad():
        return model(inputs_embeds=x, output_iterations=True).residuals.amax(0).tolist()


def gradient(model: FNNModel, x: torch.Tensor, **forward: Any) -> torch.Tensor:
    """The gradient of the mean square of the states."""
    model(inputs_embeds=x, **forward).last_hidden_state.square().mean().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def gradient_errors(x: torch.Tensor, **options: Any) -> list[float]:
    """`‖full gradient through K sweeps − implicit gradient‖ / ‖implicit gradient‖` for K = 1, 2, …"""
    exact = gradient(network(gradient="implicit", tolerance=1e-15, num_iterations=500, **options), x)
    errors = []
    for k in range(1, SWEEPS + 1):
        found = gradient(network(**options), x, num_iterations=k)
        errors.append(((found - exact).norm() / exact.norm()).item())
    return errors


def measure() -> dict[str, dict[str, list[float]]]:
    """Panel → line → values."""
    torch.manual_seed(1)
    x = torch.randn(8, 30, 64, dtype=torch.float64)
    sweeps = {name: residuals(network(num_iterations=SWEEPS, **options), x) for name, options in KINDS.items()}
    anderson = dict(gradient="implicit", solver="anderson", tolerance=1e-15, num_iterations=SWEEPS)
    sweeps["temporal, parallel, Anderson"] = residuals(network(sweep="parallel", **anderson), x)
    norms = {}
    for norm in NORMS:
        model = network(sweep="parallel", num_iterations=SWEEPS)
        with torch.no_grad():
            for matrix in (model.layers[0].W.weight, model.layers[0].V.weight):
                matrix.mul_(norm / 0.9)
        norms[f"‖W‖ + ‖V‖ = {norm:g}"] = residuals(model, x)
    errors = {name: gradient_errors(x, **options) for name, options in KINDS.items()}
    return {"residual": sweeps, "residual, parallel sweep": norms, "error of the gradient": errors}


def table(panels: dict[str, dict[str, list[float]]]) -> str:
    """The values at a few sweeps, as markdown."""
    at = (2, 5, 10, 20, 40)
    rows = [f"| | {' | '.join(f'K = {k}' for k in at)} |", "|---" * (len(at) + 1) + "|"]
    for panel, lines in panels.items():
        for name, values in lines.items():
            first = 1 if panel.startswith("error") else 2
            cells = [f"{values[k - first]:.1e}" if k - first < len(values) else "" for k in at]
            rows.append(f"| {panel}: {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def plot(panels: dict[str, dict[str, list[float]]], file: Path) -> None:
    """One panel a measurement, logarithmic."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "hf_feedback"})  # small; the same every time
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(13, 3.8), layout="constrained")
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for name, values in lines.items():
            first = 1 if title.startswith("error") else 2
            axis.semilogy(range(first, first + len(values)), [max(v, 1e-16) for v in values], label=name)
        axis.set(title=title, xlabel="sweep K", ylim=(1e-16, 3))
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("examples/guides/images/sweeps.svg"))
    args = parser.parse_args()
    panels = measure()
    print(table(panels))
    plot(panels, args.output)
    print(f"\nThe plot is in {args.output}")


if __name__ == "__main__":
    main()
