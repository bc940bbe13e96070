"""What a run leaves behind: the table, the figure, files that are whole or not there."""

import io
import json
import os
from pathlib import Path

import numpy as np


def table(report: dict, bound) -> str:
    """The report as text."""
    part = report["attacked_images"] < report["num_images"]
    lines = [
        f"proved Lipschitz bound of the features  {bound.value:.7f} ({bound.kind})",
        f"rounding of a logit: {report['logit_error']['value']:.1e}, twice the largest measured on "
        f"{report['logit_error']['images']} images, taken off both logits of a margin",
        f"{report['split']} images {report['num_images']}, abstentions {report['abstentions']}, "
        f"attacked {report['attacked_images']}, certified radii broken by the attack "
        f"{report['certified_radii_broken_by_the_attack']}",
        *(f"note: {note}" for note in report["data_notes"]),
        "",
        "l2 radius     certified  "
        + (
            f"of the {report['attacked_images']} attacked: certified  attacked"
            if part
            else "attacked"
        )
        + ("  best linear" if "linear" in report else ""),
    ]
    for i, row in enumerate(report["rows"]):
        line = f"{_name(row['radius']):<12} {row['certified']:9.1%}"
        line += f"{row['certified_of_attacked']:33.1%}" if part else ""
        line += f" {row['attacked']:9.1%}"
        if "linear" in report:
            line += f"{report['linear'][i]:12.1%}"
        lines.append(line)
    if "linear" in report:
        lines.append("best linear: the best linear classifier for each row by itself, exact")
    return "\n".join(lines)


def plot(path: Path, report: dict, correct, radii) -> None:
    """Certified and attacked accuracy against radius."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    usable = np.where(correct & np.isfinite(radii), radii, 0)
    grid = np.linspace(0, max(1.2 * max(r["radius"] for r in report["rows"]), 0.1), 400)
    figure, axes = pyplot.subplots(figsize=(6.4, 4))
    curve = [np.mean(correct)] + [np.mean(usable > r) for r in grid[1:]]
    axes.plot(grid, curve, color="C0", label="certified: no input can do worse")
    attacked = [(r["radius"], r["attacked"]) for r in report["rows"]]
    part = report["attacked_images"] < report["num_images"]
    first = f" (first {report['attacked_images']} images)" if part else ""
    axes.plot(*zip(*attacked), "o", color="C3", label=f"attacked by gradient descent{first}")
    if part:
        points = [(r["radius"], r["certified_of_attacked"]) for r in report["rows"]]
        axes.plot(*zip(*points), "_", color="C0", ms=10, label=f"certified{first}")
    axes.fill_between(grid, 0, curve, color="C0", alpha=0.12)
    if "linear" in report:
        points = [(row["radius"], best) for row, best in zip(report["rows"], report["linear"])]
        axes.plot(*zip(*points), "x", color="0.5", label="best linear classifier per radius")
    axes.set(
        xlabel="l2 radius (pixels in [0, 1])",
        ylabel="accuracy",
        ylim=(0, 1),
        xlim=(0, grid[-1]),
        title=f"{report['config']['data']}: {report['config']['model']['layer'].upper()} network",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    figure.tight_layout()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    pyplot.close(figure)
    write(path, image.getvalue())


def write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content)
    except OSError as error:  # a full disk, which the system reports without a name
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    os.replace(part, path)


PER_IMAGE = {"images", "examples", "labels", "prediction", "predictions", "radius", "radii"}
PER_IMAGE |= {"per_image", "proved_edits", "selfcheck"}
"""Entries of a report that grow with the test split, and the checks of the platform."""


def write_table(path: Path, report: dict) -> None:
    """Writes what a table is made of: the report without its lines for single images.

    A few kB, with the versions that it was made with, to be kept beside the table.
    """
    rest = {name: value for name, value in report.items() if name not in PER_IMAGE}
    rest["num_images"] = len(report["labels"])
    rest["platform"] = report["selfcheck"]["platform"]
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in rest.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def _name(radius: float) -> str:
    """36/255 rather than 0.1412, but 0.2 and not 51/255."""
    if not radius:
        return "0 (clean)"
    steps = round(radius * 255) if radius < 1 else 0
    if steps and radius != round(radius, 3) and abs(radius * 255 - steps) < 1e-6:
        return f"{steps}/255"
    return f"{radius:g}"
