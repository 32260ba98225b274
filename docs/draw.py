"""The figures of docs/: what a service with the bundled models answers about one photo.

`python docs/draw.py` draws all of them anew, and writes the example in docs/response.md that goes
with its figure. It is to be done whenever the bundled weights change, and takes half a minute.
"""

from __future__ import annotations

import base64
import json
import re
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from starlette.testclient import TestClient

from app import images, render
from app.main import create_app
from app.settings import Settings
from models import heatmap
from models.coco import JOINT_NAMES

DOCS = Path(__file__).resolve().parent
FIGURES = DOCS / "figures"
_ULTRALYTICS = find_spec("ultralytics")
assert _ULTRALYTICS is not None
assert _ULTRALYTICS.origin is not None
BUS = Path(_ULTRALYTICS.origin).parent / "assets/bus.jpg"
#: A man who is whole and in plain sight: brought along, so that the detector has no say.
BOX = [222, 405, 345, 860]
#: Okabe and Ito's colours, which everybody can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
LIGHT = "#ffffff"


def main() -> None:
    """Ask a service of the bundled models, and draw its answers."""
    mpl.rcParams |= {"font.size": 8, "axes.titlesize": 9, "axes.spines.top": False}
    mpl.rcParams |= {"axes.spines.right": False, "axes.linewidth": 0.6}
    FIGURES.mkdir(exist_ok=True)
    photo = images.decode(BUS.read_bytes(), 50_000_000)
    with TestClient(create_app(Settings(device="cpu"))) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.1)
        draw_response(photo, asked(client))
        told = {}
        for representation in ("simcc", "dark", "pct"):
            query = {"boxes": json.dumps([BOX]), "explain": "true"}
            told[representation] = asked(client, representation=representation, **query)
    draw_simcc(photo, told["simcc"]["predictions"][0])
    draw_heatmap(photo, told["dark"]["predictions"][0])
    draw_pct(photo, told["pct"]["predictions"][0])


def asked(client: TestClient, **query: str) -> dict[str, Any]:
    """What the service answers about the photo."""
    headers = {"Content-Type": "image/jpeg"}
    answer = client.post("/pose", content=BUS.read_bytes(), headers=headers, params=query)
    answer.raise_for_status()
    body: dict[str, Any] = answer.json()
    return body


# ------------------------------------------------------------------------------------ the response


def draw_response(photo: np.ndarray, body: dict[str, Any]) -> None:
    """The photo, and which field says what of it."""
    person = body["predictions"][0]
    joints = np.reshape(person["keypoints"], (-1, 3))
    x, y, width, height = person["bbox"]
    boxes = np.array([[x, y, x + width, y + height]], np.float32)
    drawn = render.draw(photo, joints[None].astype(np.float32), boxes)
    across, down = body["images"][0]["width"], body["images"][0]["height"]

    figure = Figure((6.8, 4.7), layout="constrained", facecolor=LIGHT)
    axes = figure.subplots()
    axes.imshow(drawn)
    axes.set(xlim=(-430, across + 480), ylim=(down + 8, -95))
    axes.axis("off")
    for start, end, at, text in (
        ((0, -28), (across, -28), (across / 2, -62), f"images[0].width = {across}"),
        ((across + 25, 0), (across + 25, down), (across + 75, down - 130), "images[0].height"),
    ):
        axes.annotate("", end, start, arrowprops={"arrowstyle": "<->", "color": "#444444"})
        axes.text(*at, text, ha="center" if at[1] < 0 else "left", family="monospace")
    axes.text(across + 75, down - 85, f"= {down}", family="monospace")

    left = [("pixel (0, 0)", "is the upper left", (0, 0))]
    left += [("bbox: x, y", f"{_numbers((x, y))}, …", (x, y))]
    left += [("bbox: width, height", f"…, {_numbers((width, height))}", (x + width, y + height))]
    seen = [joint for joint in (0, 5, 9, 16) if joints[joint, 2] > 0.3]
    right = [
        (
            f"keypoints[{3 * joint}:{3 * joint + 3}]",
            f"{JOINT_NAMES[joint]}\n{_numbers(joints[joint])}",
            joints[joint],
        )
        for joint in seen
    ]
    for side, callouts in ((-1, left), (1, right)):
        for row, (field, text, point) in enumerate(callouts):
            at = (-425 if side < 0 else across + 75, 40 + row * (250 if side < 0 else 190))
            note = f"{field}\n{text}"
            style = {"arrowstyle": "-", "color": COLOURS[1], "linewidth": 1, "shrinkB": 0}
            axes.annotate(
                note,
                point[:2],
                at,
                ha="left",
                va="center",
                family="monospace",
                fontsize=7.5,
                arrowprops=style | {"relpos": (1 if side < 0 else 0, 0.5)},
                bbox={"boxstyle": "round,pad=0.4", "facecolor": LIGHT, "edgecolor": COLOURS[1]},
            )
    _save(figure, "response")
    _write_example(body)


def _write_example(body: dict[str, Any]) -> None:
    """Put the same answer, shortened, into the page that the figure is on."""
    text = {key: json.dumps(value) for key, value in body.items()}
    person = body["predictions"][0]
    lines = [
        f'{{"request_id": {text["request_id"]},',
        f' "representation": {text["representation"]}, "model": {text["model"]},',
        f' "images": {text["images"]},',
        ' "predictions": [{"image_id": 0, "category_id": 1,',
        f'                  "bbox": {person["bbox"]}, "score": {person["score"]},',
        f'                  "keypoints": [{_numbers(person["keypoints"][:9])}, …]}},',
        "                 …],",
        ' "timings_ms": '
        + text["timings_ms"].replace(', "pose"', ',\n                "pose"')
        + "}",
    ]
    page = DOCS / "response.md"
    block = "```json\n" + "\n".join(lines) + "\n```"
    page.write_text(
        re.sub(r"```json\n.*?```", lambda _: block, page.read_text(), count=1, flags=re.DOTALL)
    )


# ----------------------------------------------------------------------------- the representations


def draw_simcc(photo: np.ndarray, person: dict[str, Any]) -> None:
    """The two distributions of four joints along the crop's edges; two of them from near by."""
    told = person["explanation"]
    width, height = told["crop_size"]
    x, y = unpack(told["x"]), unpack(told["y"])
    (step_x, step_y), (origin_x, origin_y) = told["grid"]["step"], told["grid"]["origin"]
    columns = origin_x + step_x * np.arange(x.shape[1])
    rows = origin_y + step_y * np.arange(y.shape[1])
    scores = np.reshape(person["keypoints"], (-1, 3))[:, 2]

    figure = Figure((6.8, 4.4), facecolor=LIGHT)
    # 3:4, as the crop is.
    picture = figure.add_axes((0.05, 0.27, 0.345, 0.71))
    below = figure.add_axes((0.05, 0.1, 0.345, 0.15), sharex=picture)
    beside = figure.add_axes((0.405, 0.27, 0.1, 0.71), sharey=picture)
    near = figure.add_axes((0.615, 0.62, 0.375, 0.28)), figure.add_axes((0.615, 0.1, 0.375, 0.28))
    _show_crop(picture, photo, told)
    for joint, colour in zip((0, 5, 9, 16), COLOURS, strict=True):
        at = columns[x[joint].argmax()], rows[y[joint].argmax()]
        below.fill_between(columns, x[joint], color=colour, alpha=0.6, linewidth=0)
        beside.fill_betweenx(rows, y[joint], color=colour, alpha=0.6, linewidth=0)
        picture.plot((at[0], at[0], width), (height, at[1], at[1]), color=colour, linewidth=0.8)
        picture.plot(*at, "o", color=colour, markeredgecolor="white", label=JOINT_NAMES[joint])
    picture.legend(loc="upper left", fontsize=6.5, framealpha=0.85)
    picture.tick_params(labelbottom=False)
    below.set(xlabel="x in crop pixels", yticks=[])
    below.set_ylabel("p(x)")
    beside.set(xlabel="p(y)", xticks=[])
    beside.tick_params(labelleft=False)

    surest = ("surest", scores.argmax()), ("least sure", scores.argmin())
    for axes, (told_of, joint) in zip(near, surest, strict=True):
        peak = int(x[joint].argmax())
        shown = slice(max(peak - 24, 0), peak + 25)
        axes.bar(columns[shown], x[joint, shown], step_x * 0.85, color="#999999")
        axes.bar(columns[peak], x[joint, peak], step_x * 0.85, color=COLOURS[1])
        axes.set_title(f"the {told_of} joint:\n{JOINT_NAMES[joint]}, score {scores[joint]:.2f}")
        axes.set(xlabel="x in crop pixels; a bar is a bin", ylabel="p(x)", ylim=(0, 1.05 * x.max()))
    _save(figure, "simcc")


def draw_heatmap(photo: np.ndarray, person: dict[str, Any]) -> None:
    """One joint's heatmap over the crop, its peak from near by, and where each decoding puts it."""
    told = person["explanation"]
    maps = torch.from_numpy(unpack(told["maps"]))
    placed = {
        method: heatmap.decode(maps, method).numpy() for method in ("argmax", "shift", "dark")
    }
    # Of the clear peaks the one that lies furthest from a pixel's centre.
    clear = placed["dark"][:, 2] >= np.median(placed["dark"][:, 2])
    moved = np.linalg.norm(placed["dark"][:, :2] - placed["argmax"][:, :2], axis=1) * clear
    joint = int(moved.argmax())
    seen, (column, row) = maps[joint].numpy(), placed["argmax"][joint, :2].astype(int)
    step, origin = told["grid"]["step"], told["grid"]["origin"]

    figure = Figure((6.8, 3.1), layout="constrained", facecolor=LIGHT)
    over, near, through = figure.subplots(1, 3, width_ratios=(0.8, 1, 1.15))
    _show_crop(over, photo, told)
    rows, columns = seen.shape
    extent = [
        origin[0] - step[0] / 2, origin[0] + step[0] * (columns - 0.5),
        origin[1] + step[1] * (rows - 0.5), origin[1] - step[1] / 2,
    ]  # fmt: skip
    over.imshow(seen, "inferno", extent=extent, alpha=np.clip(2 * seen / seen.max(), 0, 0.85))
    over.set_title(f"the map of {JOINT_NAMES[joint]}")
    reach = 5
    corner = [
        origin[axis] + step[axis] * (at - reach - 0.5) for axis, at in enumerate((column, row))
    ]
    sides = [step[axis] * (2 * reach + 1) for axis in (0, 1)]
    over.add_patch(mpl.patches.Rectangle(corner, *sides, fill=False, edgecolor="white"))

    near.imshow(seen, "inferno")
    near.set(
        xlim=(column - reach - 0.5, column + reach + 0.5),
        ylim=(row + reach + 0.5, row - reach - 0.5),
    )
    near.set_title("its peak, in map pixels")
    marks = (
        ("argmax", "s", "highest pixel"),
        ("shift", "^", "a quarter's shift"),
        ("dark", "*", "DARK"),
    )
    for colour, (method, mark, name) in zip(("#56b4e9", "#f0e442", "#ffffff"), marks, strict=True):
        size = 11 if mark == "*" else 6
        near.plot(
            *placed[method][joint, :2],
            mark,
            color=colour,
            markersize=size,
            markeredgecolor="black",
            label=name,
        )
    near.legend(loc="lower right", fontsize=6.5)

    # What DARK does: the logarithm of the blurred map around its peak is taken for a parabola.
    blurred = cv2.GaussianBlur(seen, (11, 11), 0)
    blurred *= seen.max() / blurred.max()
    around = np.arange(max(column - reach, 2), min(column + reach + 1, columns - 2))
    line = np.log(blurred[row, column - 2 : column + 3])
    slope, bend = (line[3] - line[1]) / 2, (line[4] - 2 * line[2] + line[0]) / 4
    fine = np.linspace(column - 3.5, column + 3.5, 200) - column
    through.bar(around, blurred[row, around], 0.85, color="#bbbbbb", label="map, blurred")
    through.plot(
        fine + column,
        np.exp(line[2] + slope * fine + bend * fine**2 / 2),
        color=COLOURS[0],
        label="Gaussian",
    )
    for method, colour, name in (
        ("argmax", "#444444", "highest pixel"),
        ("dark", COLOURS[1], "DARK"),
    ):
        through.axvline(
            placed[method][joint, 0], color=colour, linewidth=1, linestyle="--", label=name
        )
    through.set_title("along x, in the peak's row")
    through.set(xlabel="x in map pixels", ylim=(0, 1.45 * seen.max()))
    through.legend(fontsize=6.5, ncols=2, loc="upper center")
    _save(figure, "heatmap")


def draw_pct(photo: np.ndarray, person: dict[str, Any]) -> None:
    """The tokens, which joints each one moves, and three of them on the picture."""
    told = person["explanation"]
    moves = np.array(told["moves"])
    tokens, joints = moves.shape
    figure = Figure((6.8, 4.4), layout="constrained", facecolor=LIGHT)
    table, picture = figure.subplots(1, 2, width_ratios=(1.3, 1))

    shown = table.imshow(moves, "viridis", aspect="auto")
    chosen: list[int] = []
    for token in np.argsort(-moves.max(1)).tolist():
        if moves[token].argmax() not in moves[chosen].argmax(1) and len(chosen) < 3:
            chosen.append(token)
    table.set_xticks(range(joints), JOINT_NAMES, rotation=90, fontsize=6.5)
    labels = [f"{index}: entry {entry}" for index, entry in enumerate(told["tokens"])]
    table.set_yticks(range(tokens), labels, fontsize=5.5)
    for token, colour in zip(chosen, COLOURS[1:], strict=True):
        table.get_yticklabels()[token].set(color=colour, fontweight="bold")
    table.set_title("the pose, written as tokens")
    bar = figure.colorbar(shown, ax=table, shrink=0.5, pad=0.01)
    bar.set_label("crop pixels that the joint moves", fontsize=6.5)

    _show_crop(picture, photo, told)
    places = _in_crop(told, np.reshape(person["keypoints"], (-1, 3))[:, :2])
    for token, colour in zip(chosen, COLOURS[1:], strict=True):
        for place, radius in zip(places, moves[token], strict=True):
            picture.add_patch(
                mpl.patches.Circle(place, radius, color=colour, alpha=0.45, linewidth=0)
            )
        picture.plot([], [], "o", color=colour, alpha=0.6, label=f"token {token}")
    picture.plot(
        *places.T, ".", color="white", markersize=3, markeredgecolor="black", markeredgewidth=0.4
    )
    picture.legend(loc="upper left", fontsize=6.5, framealpha=0.85)
    picture.set_title("how far three of them move joints")
    _save(figure, "pct")


# ------------------------------------------------------------------------------------------- parts


def unpack(packed: dict[str, Any]) -> np.ndarray:
    """As docs/page.md tells."""
    share = np.frombuffer(base64.b64decode(packed["data"]), np.uint8).reshape(packed["shape"]) / 255
    return np.float32(share * np.reshape(packed["peaks"], (-1, *[1] * (share.ndim - 1))))


def _show_crop(axes: Axes, photo: np.ndarray, told: dict[str, Any]) -> None:
    """The photo as the network saw it, but finer."""
    finer = 3
    width, height = told["crop_size"]
    to_image = np.array(told["crop_to_image"]) * ((1 / finer, 1 / finer, 1),)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    crop = cv2.warpAffine(photo, to_image, (finer * width, finer * height), flags=flags)
    axes.imshow(crop, extent=[-0.5, width - 0.5, height - 0.5, -0.5])
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes.tick_params(labelsize=6.5)


def _in_crop(told: dict[str, Any], places: np.ndarray) -> np.ndarray:
    """Places in the image as places in the crop."""
    to_image = np.array(told["crop_to_image"])
    return np.linalg.solve(to_image[:, :2], (places - to_image[:, 2]).T).T


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _save(figure: Figure, name: str) -> None:
    options = {"quality": 88, "subsampling": 0, "optimize": True}
    figure.savefig(FIGURES / f"{name}.jpg", dpi=200, pil_kwargs=options)


if __name__ == "__main__":
    main()
